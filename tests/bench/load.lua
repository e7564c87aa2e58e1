-- load.lua: what wrk sends, and what it reports.
--     wrk [options] -s load.lua URL -- get|touch|create IDS_FILE
--     wrk [options] -s load.lua URL -- lines FILE      a request a line: method, target, cookie and body, by tabs
-- They go round the lines of the file, so that two requests for one session are as far apart as can be. All
-- requests are built before the first is sent: building them would be measured as well.

local build = {
    get = function(id)
        return wrk.format("GET", "/api/sessions?sessionId=" .. id)
    end,
    -- What the portal's page sends on every click, key, scroll and mouse move.
    touch = function(id)
        return wrk.format("POST", "/api/sessions", { ["Content-Type"] = "application/json" },
            '{"sessionId":"' .. id .. '","updates":{"lastActivity":"2026-01-31T12:00:00.000Z"}}')
    end,
    create = function()
        return wrk.format("GET", "/api/sessions")
    end,
    lines = function(line)
        local method, target, cookie, body = line:match("^(.-)\t(.-)\t(.-)\t(.*)$")
        local headers = { Cookie = cookie ~= "" and cookie or nil }
        if body ~= "" then
            headers["Content-Type"] = "application/json"
        end
        return wrk.format(method, target, headers, body ~= "" and body or nil)
    end,
}

local requests, at = {}, 0

function init(args)
    for id in io.lines(args[2]) do
        requests[#requests + 1] = build[args[1]](id)
    end
end

function request()
    at = at % #requests + 1
    return requests[at]
end

-- One line of JSON. wrk counts a status above 399 as an error of kind "status".
function done(summary, latency)
    local e = summary.errors
    print(string.format('JSON {"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"errors":' ..
        '{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        e.connect, e.read, e.write, e.status, e.timeout))
end
