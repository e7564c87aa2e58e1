<?php
// The same with PHP's own sessions, in Redis (php.ini beside this file): the cookie says which. PUT makes one.

function answer(int $status, string $body): never
{
    http_response_code($status);
    header('Content-Type: application/json; charset=utf-8');
    exit($body);
}

$method = $_SERVER['REQUEST_METHOD'];
if (!session_start(['read_and_close' => $method === 'GET'])) {
    answer(503, '{"success":false}');
}
if ($method === 'PUT') {
    $_SESSION['document'] = json_decode(file_get_contents('php://input'));
}
if (!isset($_SESSION['document'])) {
    answer(401, '{"success":false}');
}
$document = $_SESSION['document'];
$id = session_id();
if ($method === 'GET') {
    answer(200, "{\"success\":true,\"sessionId\":\"$id\",\"session\":" . json_encode($document, JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE) . '}');
}
if ($method === 'POST') {
    foreach (json_decode(file_get_contents('php://input'))->updates as $member => $value) {
        $document->$member = $value;
    }
    $document->lastActivity = $document->metadata->updated = (new DateTime('now', new DateTimeZone('UTC')))->format('Y-m-d\TH:i:s.v\Z');
}
answer(session_write_close() ? 200 : 503, "{\"success\":true,\"sessionId\":\"$id\",\"message\":\"Session saved successfully\"}");
