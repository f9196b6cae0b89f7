-- Asks for the lines of a file in turn, each "path token" or "path -"; tells the result as one line of JSON.
local requests, last = {}, 0

function init(args)
  for line in io.lines(args[1]) do
    local path, token = line:match("^(%S+) (%S+)$")
    local headers = { ["Cache-Control"] = "no-cache", ["Accept"] = "application/json" }
    if token ~= "-" then
      headers["Authorization"] = "Bearer " .. token
    end
    requests[#requests + 1] = wrk.format("GET", path, headers)
  end
end

function request()
  last = last % #requests + 1
  return requests[last]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"answers":%d,"micros":%d,"bad":%d,"broken":%d,"late":%d,"p50":%d,"p99":%d,"longest":%d}\n',
    summary.requests, summary.duration, errors.status, errors.connect + errors.read + errors.write, errors.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
