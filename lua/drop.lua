-- drop: forget dead letters for good.
--
-- KEYS[1] items     hash  id -> group:nonce:size:envelope
-- KEYS[2] dead      zset  group:id -> died (ms)
-- KEYS[3] attempts  hash  id -> record of attempts
-- KEYS[4] errors    hash  id -> text of the last error
-- KEYS[5] stats     hash  counters
-- KEYS[6] groups    zset  group -> when it next wants attention (ms)
-- KEYS[7] routes    hash  group -> where to ring for it (JSON)
-- KEYS[8] parked    hash  group -> its delayed requests and dead letters
-- ARGV[1]  now_ms  int   not used: every script takes it
-- ARGV[2+] members  list  group:id, at most 500
--
-- Returns {"dropped", count}. What is no dead letter is left alone. Cost O(ids log n).
local items, dead, attempts, errors, stats = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local groups, routes, parked = KEYS[6], KEYS[7], KEYS[8]
local members = {unpack(ARGV, 2)}

redis.call('HLEN', items)
redis.call('ZCARD', dead)
redis.call('HLEN', attempts)
redis.call('HLEN', errors)
redis.call('HLEN', stats)
redis.call('ZCARD', groups)
redis.call('HLEN', routes)
redis.call('HLEN', parked)

local dropped = {}
for _, member in ipairs(members) do
  if redis.call('ZREM', dead, member) == 1 then
    local group, id = string.match(member, '^([^:]*):(.*)$')
    dropped[#dropped + 1] = id
    park(parked, group, -1)
    forget_route(routes, parked, group, redis.call('ZSCORE', groups, group))
  end
end
call_many('HDEL', items, dropped)
call_many('HDEL', attempts, dropped)
call_many('HDEL', errors, dropped)
if #dropped > 0 then
  redis.call('HINCRBY', stats, 'dropped', #dropped)
end
return {'dropped', #dropped}
