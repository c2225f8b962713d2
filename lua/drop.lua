-- drop: forget dead letters for good.
-- Uses: letters
--
-- KEYS[1] items     hash!  id -> group:nonce:size:envelope
-- KEYS[2] dead      zset!  group:id -> died (ms)
-- KEYS[3] attempts  hash!  id -> record of attempts
-- KEYS[4] errors    hash!  id -> text of the last error
-- KEYS[5] stats     hash!  counters
-- KEYS[6] groups    zset!  group -> when it next wants attention (ms)
-- KEYS[7] routes    hash!  group -> where to ring for it (JSON)
-- KEYS[8] parked    hash!  group -> its delayed requests and dead letters
-- ARGV[1]  now_ms   int   not used: every script takes it
-- ARGV[2+] members  list  group:id, at most 500
--
-- Returns {"dropped", count}
-- What is no dead letter is left alone. Cost O(ids log n).

guard()
local dropped = {}
for _, member in ipairs(members) do
  if redis.call('ZREM', dead, member) == 1 then
    dropped[#dropped + 1] = member
  end
end
return {'dropped', forget_letters(dropped)}
