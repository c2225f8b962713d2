-- requeue: let dead letters of one group run again, with a clean record.
--
-- KEYS[1] items     hash  id -> group:nonce:size:envelope
-- KEYS[2] pending   list  since_ms:split:size:id, oldest first
-- KEYS[3] groups    zset  group -> when it next wants attention (ms)
-- KEYS[4] bells     hash  group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[5] routes    hash  group -> where to ring for it (JSON)
-- KEYS[6] dead      zset  group:id -> died (ms)
-- KEYS[7] attempts  hash  id -> record of attempts
-- KEYS[8] errors    hash  id -> text of the last error
-- KEYS[9] parked    hash  group -> its delayed requests and dead letters
-- ARGV[1]  now_ms       int   empty: the server's time
-- ARGV[2]  group        text
-- ARGV[3]  route        text  JSON, for a group whose route is not known any more, or empty
-- ARGV[4]  flush_every  int
-- ARGV[5]  interval_ms  int
-- ARGV[6+] ids          list  at most 500
--
-- Returns {"requeued", count, signals, route}, or {"unrouted", count} if nobody knows where to ring for the
-- group, which changes nothing. An id that is no dead letter is left alone.
-- Cost O(ids log n).
local items, pending, groups, bells = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local routes, dead, attempts, errors, parked = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local now_ms, group, route = ARGV[1], ARGV[2], ARGV[3]
local flush_every, interval_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local ids = {unpack(ARGV, 6)}

local now = clock(now_ms)
redis.call('HLEN', items)
redis.call('LLEN', pending)
redis.call('ZCARD', groups)
redis.call('HLEN', bells)
redis.call('ZCARD', dead)
redis.call('HLEN', attempts)
redis.call('HLEN', errors)
redis.call('HLEN', parked)

route = redis.call('HGET', routes, group) or route
if route == '' then
  return {'unrouted', #ids}
end

-- Frees first, so that it also works when the server is out of memory.
local entries, revived = {}, {}
for _, id in ipairs(ids) do
  if redis.call('ZREM', dead, group .. ':' .. id) == 1 then
    revived[#revived + 1] = id
    entries[#entries + 1] = write_entry(now, FRESH, '', id)
  end
end
call_many('HDEL', attempts, revived)
call_many('HDEL', errors, revived)
park(parked, group, -#entries)
call_many('RPUSH', pending, entries)
if #entries > 0 then
  redis.call('HSET', routes, group, route)
end
local signals = arm(pending, groups, bells, group, flush_every, interval_ms, now)
return {'requeued', #entries, signals, route}
