<?php
// The pool's job in PHP: a session is a JSON document in Redis. GET hands on its bytes; POST {"sessionId", "updates"}
// reads it, replaces the members named and writes it with its life. Whoever writes in between is written over.

function answer(int $status, string $body): never
{
    http_response_code($status);
    header('Content-Type: application/json; charset=utf-8');
    header('Cache-Control: no-store');
    exit($body);
}

try {
    $redis = new Redis();
    $redis->pconnect(getenv('PEER_REDIS'));
    $post = $_SERVER['REQUEST_METHOD'] === 'POST' ? json_decode(file_get_contents('php://input')) : null;
    $id = $post ? $post->sessionId : $_GET['sessionId'];
    $key = "php:session:$id";
    $document = $redis->get($key);
    if ($document === false) {
        answer(401, '{"success":false}');
    }
    if (!$post) {
        answer(200, "{\"success\":true,\"sessionId\":\"$id\",\"session\":$document}");
    }
    $document = json_decode($document);
    foreach ($post->updates as $member => $value) {
        $document->$member = $value;
    }
    $document->lastActivity = $document->metadata->updated = (new DateTime('now', new DateTimeZone('UTC')))->format('Y-m-d\TH:i:s.v\Z');
    $written = $redis->set($key, json_encode($document, JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE), ['xx', 'ex' => 86400]);
    answer($written ? 200 : 401, "{\"success\":true,\"sessionId\":\"$id\",\"message\":\"Session saved successfully\"}");
} catch (RedisException $e) {
    answer(503, '{"success":false}');
}
