-- knock: may beat send another sweep message, or is one still waiting for a worker?
-- Uses: clock, values
--
-- KEYS[1] beat  hash  out, sent_ms, pause_ms
-- ARGV[1] now_ms  int   empty: the server's time
-- ARGV[2] opened  flag  a worker runs the sweep now
--
-- Returns {"send"}
--         {"wait"}
--         {"opened"}
-- So that a day without workers does not fill the broker: an unanswered message is repeated after
-- a pause that doubles. Cost O(1).

local out = redis.call('HGET', beat, 'out') == '1'
local sent_ms = tonumber(redis.call('HGET', beat, 'sent_ms') or 0)
local pause_ms = tonumber(redis.call('HGET', beat, 'pause_ms') or MIN_PAUSE_MS)
if opened then
  redis.call('HSET', beat, 'out', '0', 'pause_ms', MIN_PAUSE_MS)
  return {'opened'}
end
if out and sent_ms <= now and now < sent_ms + pause_ms then
  return {'wait'}
end
if out then
  pause_ms = math.min(2 * pause_ms, MAX_PAUSE_MS)
end
redis.call('HSET', beat, 'out', '1', 'sent_ms', int(now), 'pause_ms', int(pause_ms))
return {'send'}
