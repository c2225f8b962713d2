-- push: accept requests of one group, in order, and say how many doorbells to ring for them.
-- Uses: admission, arm, clock, doorbells, placement, records, routes, values
--
-- KEYS[1]  items     hash   id -> group:nonce:size:envelope
-- KEYS[2]  pending   list!  since_ms:split:size:id, oldest first
-- KEYS[3]  own       hash   id -> token:nonce
-- KEYS[4]  groups    zset!  group -> when it next wants attention (ms)
-- KEYS[5]  bells     hash   group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[6]  routes    hash   group -> where to ring for it (JSON)
-- KEYS[7]  eta       zset   group:id -> wall clock (ms)
-- KEYS[8]  dead      zset   group:id -> died (ms)
-- KEYS[9]  attempts  hash   id -> record of attempts
-- KEYS[10] errors    hash   id -> text of the last error
-- KEYS[11] done      zset   nonce or token -> expiry (ms)
-- KEYS[12] revoked   zset   id -> expiry (ms)
-- KEYS[13] stats     hash!  counters
-- KEYS[14] parked    hash   group -> its delayed requests and dead letters
-- ARGV[1]  now_ms       int   empty: the server's time
-- ARGV[2]  group        text  a hash of route and batch key
-- ARGV[3]  route        text  JSON
-- ARGV[4]  trigger      text  the caller's own
-- ARGV[5]  max_pending  int   requests of the task that may wait
-- ARGV[6]  window_ms    int   how long a call is remembered whose retry takes its place
-- ARGV[7]  caller       text  token of the batch that the call is made from, or empty
-- ARGV[8]  age_ms       int   how long ago these requests were first sent; 0: they are sent first now
-- ARGV[9+] requests     list  (id, nonce, eta_ms or empty, size or empty, envelope)*, at most 500
--
-- Returns {"pushed" signals now_ms statuses}  in one string, which a client reads sooner than a list
-- A status per request: "new", "again" (this very call is stored already), "done" (it ran already),
-- "duplicate" (another call with this id waits or runs), "full", "forgotten" (it was sent before, so
-- long ago that it may have run and be forgotten: it is not stored). The size is what a worker will
-- hold of a compressed envelope, in bytes. A call from inside a batch with the id of one of its own
-- requests is its retry. A call whose id was revoked waits for nothing but to be told so.
-- Cost O(requests).

local ids = {}
for i = 1, #requests, 5 do
  ids[#ids + 1] = requests[i]
end
local values = redis.call('HMGET', items, unpack(ids))
local routed = redis.call('HEXISTS', routes, group) == 1

local statuses = {}
for i, id in ipairs(ids) do
  local verdict = admit(id, requests[5 * i - 3], plan.placed[id], values[i])
  statuses[i] = verdict
  if verdict == 'new' or verdict == 'retry' or verdict == 'dead' then
    place(i, verdict, values[i])
    statuses[i] = 'new'
  end
end
if #plan.stores == 0 then
  return {table.concat({'pushed', 0, int(now), unpack(statuses)}, ' ')}
end

local rung = read_bells(redis.call('HGET', bells, group))
guard()
-- What only some pushes write.
if #plan.etas > 0 then
  redis.call('ZCARD', eta)
end
if #plan.replaced > 0 or #plan.records > 0 then
  redis.call('HLEN', attempts)
  redis.call('HLEN', errors)
end
if #plan.etas > 0 or #plan.letters > 0 then
  redis.call('HLEN', parked)
end

-- The first write allocates: a server that is out of memory refuses the call whole.
call_many('HSET', items, plan.stores)
if #plan.replaced > 0 then
  call_many('HDEL', own, plan.released)
  call_many('ZREM', dead, plan.letters)
  call_many('HDEL', attempts, plan.replaced)
  call_many('HDEL', errors, plan.replaced)
  call_many('ZADD', done, plan.tombstones)
end
call_many('HSET', attempts, plan.records)
call_many('ZADD', eta, plan.etas)
park(group, #plan.etas / 2)
if not routed then
  redis.call('HSET', routes, group, route)
end
if plan.new > 0 then
  redis.call('HINCRBY', stats, 'pushed', plan.new)
end
if plan.revoked > 0 then
  redis.call('HINCRBY', stats, 'revoked', plan.revoked)
end
local waits = #plan.entries > 0 and redis.call('RPUSH', pending, unpack(plan.entries))
local signals = arm(waits or redis.call('LLEN', pending), rung)
for _, member in ipairs(plan.letters) do
  local its = first_of(member)
  park(its, -1)
  forget_route(its, redis.call('ZSCORE', groups, its))
end
return {table.concat({'pushed', signals, int(now), unpack(statuses)}, ' ')}
