-- release: give requests of a batch back: to run later, to run at once, or as dead letters.
--
-- KEYS[1]  items     hash  id -> group:nonce:envelope
-- KEYS[2]  pending   list  since_ms:split:id, oldest first
-- KEYS[3]  batch     list  the claimed entries of this token
-- KEYS[4]  claims    hash  token -> record; bell:id -> token
-- KEYS[5]  own       hash  id -> token:nonce
-- KEYS[6]  groups    zset  group -> when it next wants attention (ms)
-- KEYS[7]  bells     hash  group -> outstanding:rung_ms:pause_ms:feared
-- KEYS[8]  routes    hash  group -> where to ring for it (JSON)
-- KEYS[9]  delayed   zset  group:id -> ready (ms)
-- KEYS[10] dead      zset  group:id -> died (ms)
-- KEYS[11] attempts  hash  id -> tries:crashes:alone:split:lost:tried_ms:revoked
-- KEYS[12] errors    hash  id -> text of the last error
-- KEYS[13] stats     hash  counters
-- KEYS[14] stale     hash  group:id -> its entries from the head: s stale, l live
-- ARGV[1]  now_ms       int   empty: the server's time
-- ARGV[2]  group        text
-- ARGV[3]  token        text
-- ARGV[4]  fence        text  of the claim
-- ARGV[5]  flush_every  int
-- ARGV[6]  interval_ms  int
-- ARGV[7]  max_dead     int   dead letters of the task; then the oldest goes
-- ARGV[8]  size         int   requests that the batch began with
-- ARGV[9+] outcomes     list  (id, verb, delay_ms, error)*, at most 250; the verb is "retry",
--                             "retry_batch" (the whole batch failed), "put_back" or "dead"
--
-- A batch that failed is retried whole; if it fails again, although another batch of the task went
-- well meanwhile, one of its requests is to blame: it is halved. In an outage nothing goes well.
-- Returns {"released", count, signals}, or {"fenced"} for a token without a claim, which changes
-- nothing. The claim stays open: an ack without ids ends it. Cost O(outcomes).
local items, pending, batch, claims, own = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local groups, bells, routes, delayed, dead = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local attempts, errors, stats, stale = KEYS[11], KEYS[12], KEYS[13], KEYS[14]
local now_ms, group, token, fence = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local flush_every, interval_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local max_dead, size = tonumber(ARGV[7]), tonumber(ARGV[8])
local outcomes = {unpack(ARGV, 9)}

local now = clock(now_ms)
local record = redis.call('HGET', claims, token)
if not is_claim(record, fence) then
  return {'fenced'}
end
local wanted = {}
for i = 1, #outcomes, 4 do
  wanted[outcomes[i]] = {verb = outcomes[i + 1], delay_ms = tonumber(outcomes[i + 2]),
    error = outcomes[i + 3]}
end
local mine = owned_entries(batch, own, token)
local excess = redis.call('ZCARD', dead) - max_dead
local known = redis.call('HLEN', attempts) > 0
local well_ms = tonumber(redis.call('HGET', stats, 'well_ms') or 0)
redis.call('HLEN', items)
redis.call('LLEN', pending)
redis.call('ZCARD', groups)
redis.call('HLEN', bells)
redis.call('HLEN', routes)
redis.call('ZCARD', delayed)
redis.call('HLEN', errors)
redis.call('HLEN', stale)

local freed, waiting, later, buried, tries_of, texts = {}, {}, {}, {}, {}, {}
for _, entry in ipairs(mine) do
  local since_ms, split, id = read_entry(entry)
  local outcome = wanted[id]
  if outcome then
    freed[#freed + 1] = id
    local before = known and redis.call('HGET', attempts, id)
    local state = read_attempts(before)
    if outcome.verb == 'retry_batch' and state.tries > 0 and well_ms > state.tried_ms then
      state.split = halve(flush_every, state.split, size)
    end
    if outcome.verb ~= 'put_back' then
      state.tries, state.tried_ms = state.tries + 1, now
      tries_of[#tries_of + 1] = id
      tries_of[#tries_of + 1] = write_attempts(state)
      split = state.split
    end
    if outcome.error ~= '' then
      texts[#texts + 1] = id
      texts[#texts + 1] = outcome.error
    end
    -- A retry of what was revoked is not to run, so it is told at once.
    local retried = outcome.verb == 'retry' or outcome.verb == 'retry_batch'
    local delay_ms = retried and state.revoked == 1 and 0 or outcome.delay_ms
    local member = group .. ':' .. id
    if outcome.verb == 'dead' then
      buried[#buried + 1] = int(now)
      buried[#buried + 1] = member
    elseif delay_ms > 0 then
      later[#later + 1] = int(now + delay_ms)
      later[#later + 1] = member
    else
      waiting[#waiting + 1] = write_entry(since_ms, split == FRESH and 0 or split, id)
    end
  end
end
if #freed == 0 then
  return {'released', 0, 0}
end

-- Frees first, so that it also works when the server is out of memory.
call_many('HDEL', own, freed)
call_many('HSET', attempts, tries_of)
call_many('HSET', errors, texts)
call_many('ZADD', delayed, later)
call_many('ZADD', dead, buried)
excess = excess + #buried / 2
if #buried > 0 and excess > 0 then
  local oldest, ids = redis.call('ZRANGE', dead, 0, excess - 1), {}
  for i, member in ipairs(oldest) do
    ids[i] = string.match(member, '^[^:]*:(.*)$')
  end
  call_many('ZREM', dead, oldest)
  call_many('HDEL', items, ids)
  call_many('HDEL', attempts, ids)
  call_many('HDEL', errors, ids)
  redis.call('HINCRBY', stats, 'dropped', #ids)
end
redis.call('HSETNX', routes, group, read_claim(record).route)
if #waiting > 0 then
  give_back(pending, stale, group, waiting)
end
return {'released', #freed, arm(pending, groups, bells, group, flush_every, interval_ms, now)}
