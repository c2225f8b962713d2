-- clock: what time it is, and how long pauses are.
-- Needs: now_ms

-- How long what is repeated waits for an answer: it doubles each time.
local MIN_PAUSE_MS, MAX_PAUSE_MS = 1000, 600000

-- The server's time, or the one that a test injected.
local now = now_ms
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
