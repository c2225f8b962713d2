-- release: give requests of a batch back: to run later, to run at once, or as dead letters.
-- Uses: arm, claims, doorbells, giving, letters, outcomes, routes, values
--
-- KEYS[1]  items     hash!  id -> group:nonce:size:envelope
-- KEYS[2]  pending   list!  since_ms:split:size:id, oldest first
-- KEYS[3]  claims    hash   token -> record; bell:id -> token
-- KEYS[4]  own       hash   id -> token:nonce
-- KEYS[5]  groups    zset!  group -> when it next wants attention (ms)
-- KEYS[6]  bells     hash   group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[7]  routes    hash!  group -> where to ring for it (JSON)
-- KEYS[8]  delayed   zset!  group:id -> ready (ms)
-- KEYS[9]  dead      zset   group:id -> died (ms)
-- KEYS[10] attempts  hash   id -> record of attempts
-- KEYS[11] errors    hash!  id -> text of the last error
-- KEYS[12] stats     hash   counters
-- KEYS[13] stale     hash!  group:id -> its entries from the head: s stale, l live
-- KEYS[14] parked    hash!  group -> its delayed requests and dead letters
-- KEYS[15] done      zset!  nonce or token -> expiry (ms)
-- ARGV[1]  now_ms     int   empty: the server's time
-- ARGV[2]  group      text
-- ARGV[3]  token      text
-- ARGV[4]  fence      text  of the claim
-- ARGV[5]  trigger    text  of the task
-- ARGV[6]  max_dead   int   dead letters of the task; then the oldest goes
-- ARGV[7]  size       int   requests that the batch began with
-- ARGV[8]  window_ms  int   how long a call is remembered that is dead
-- ARGV[9+] outcomes   list  (id, since_ms, verb, delay_ms, error)*, at most 250; the verb is
--                           "retry", "retry_batch" (the whole batch failed), "put_back",
--                           "postpone" (put back for a cause outside the request) or "dead"
--
-- Returns {"released", count, signals}
--         {"fenced"}  a token without a claim: nothing is changed
-- A batch that failed is retried whole; if it fails again, although another batch of the task went
-- well meanwhile, one of its requests is to blame: it is halved. In an outage nothing goes well.
-- What is put back is no try, but it is counted: each time it waits longer, and what is put back
-- again and again for no cause outside it is halved, until the claimer gives it up. The claim stays
-- open until an ack ends it. Cost O(outcomes).

local record = redis.call('HGET', claims, token)
if not is_claim(record, fence) then
  return {'fenced'}
end
local ids = {}
for i = 1, #outcomes, 5 do
  ids[#ids + 1] = outcomes[i]
end
local owners = call_many('HMGET', own, ids)
local records = call_many('HMGET', attempts, ids)
local excess = redis.call('ZCARD', dead) - max_dead
local well_ms = tonumber(redis.call('HGET', stats, 'well_ms') or 0)

for i = 1, #ids do
  local owner, nonce = string.match(owners[i] or '', '^([^:]*):(.*)$')
  if owner == token then
    give(i, nonce, records[i], well_ms)
  end
end
if #given.ids == 0 then
  return {'released', 0, 0}
end

local rung = read_bells(redis.call('HGET', bells, group))
guard()
-- Frees first, so that it also works when the server is out of memory.
call_many('HDEL', own, given.ids)
call_many('HSET', attempts, given.records)
call_many('HSET', errors, given.errors)
call_many('ZADD', delayed, given.later)
call_many('ZADD', dead, given.letters)
call_many('ZADD', done, given.tombstones)
park(group, (#given.later + #given.letters) / 2)
excess = excess + #given.letters / 2
if #given.letters > 0 and excess > 0 then
  local oldest = redis.call('ZRANGE', dead, 0, excess - 1)
  call_many('ZREM', dead, oldest)
  forget_letters(oldest, group)
end
local counts = given.counts
for name, count in pairs({put_backs = counts.put_back, postponed = counts.postpone}) do
  if count > 0 then
    redis.call('HINCRBY', stats, name, count)
  end
end
if #given.at_once > 0 then
  give_back(given.at_once)
end
local waits, route = redis.call('LLEN', pending), read_claim(record).route
local signals = arm(waits, rung)
if route ~= '' and (waits > 0 or redis.call('HEXISTS', parked, group) == 1) then
  redis.call('HSETNX', routes, group, route)
end
forget_route(group, waits > 0)
return {'released', #given.ids, signals}
