-- reclaim: take a batch back from a run that died: its lease expired, or somebody saw it die.
-- Uses: arm, batches, blame, claims, clock, doorbells, giving, records, values
--
-- KEYS[1]  pending   list!  since_ms:split:size:id, oldest first
-- KEYS[2]  batch     list   the claimed entries of this token
-- KEYS[3]  claims    hash   token -> record; bell:id -> token
-- KEYS[4]  own       hash   id -> token:nonce
-- KEYS[5]  leases    zset   token -> expiry (ms)
-- KEYS[6]  groups    zset!  group -> when it next wants attention (ms)
-- KEYS[7]  bells     hash   group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[8]  routes    hash!  group -> where to ring for it (JSON)
-- KEYS[9]  attempts  hash!  id -> record of attempts
-- KEYS[10] done      zset!  nonce or token -> expiry (ms)
-- KEYS[11] stats     hash!  counters
-- KEYS[12] stale     hash!  group:id -> its entries from the head: s stale, l live
-- ARGV[1] now_ms     int   empty: the server's time
-- ARGV[2] group      text
-- ARGV[3] token      text
-- ARGV[4] trigger    text  of the task
-- ARGV[5] window_ms  int   how long the run is remembered, so that it cannot claim again
-- ARGV[6] seen_dead  flag  the run is known to be dead, the lease need not have expired
-- ARGV[7] step       int   requests that one call gives back at most
--
-- Returns {"reclaimed", count, signals, route}
--         {"alive", wait_ms}
--         {"gone"}
--         {"more"}  a batch that is more than a step: the same call again goes on
-- A crash halves: what is given back waits in batches of half the size, so that a request that
-- kills its worker ends alone. From the first step on the run has lost its lease; the first ones give
-- nothing back, but count. Whoever dies between two steps leaves the rest to the next sweep.
-- Cost O(step + 1,000).

local expiry = tonumber(redis.call('ZSCORE', leases, token) or -1)
local record = redis.call('HGET', claims, token)
local claim = read_claim(record)
if expiry < 0 and not record then
  return {'gone'}
end
local begun = claim.fence == NO_FENCE
if expiry > now and expiry <= now + claim.lease_ms and not seen_dead and not begun then
  return {'alive', int(expiry - now)}
end
local left = redis.call('LLEN', batch)
local seen, size = string.match(claim.progress, '^(%d+),(%d+)$')
local counts = begun and seen or not begun and left > step
-- An id that another token owns by now is not this batch's any more. The last ones go first: each
-- step puts its own in front of them.
local first, last = -step, -1
if counts then
  first = begun and tonumber(seen) or 0
  last = first + CHUNK - 1
end
local held = redis.call('LRANGE', batch, first, last)
local mine, ids = owned_of(held, (ids_of(held)))
local rung = read_bells(redis.call('HGET', bells, group))
guard()

if counts then
  -- Frees first, so that it also works when the server is out of memory.
  redis.call('ZREM', leases, token)
  redis.call('ZADD', leases, int(now), token)
  redis.call('ZADD', done, int(now + window_ms), lost_token(token))
  size = (begun and tonumber(size) or 0) + #mine
  claim.fence, claim.progress = NO_FENCE, last + 1 < left and last + 1 .. ',' .. size or size
  redis.call('HSET', claims, token, write_claim(claim))
  return {'more'}
end
size = begun and tonumber(claim.progress) or #mine

local before, entries, records = call_many('HMGET', attempts, ids), {}, {}
for i, entry in ipairs(mine) do
  local since_ms, split, id, bytes = read_entry(entry)
  local record, level = strike(before[i], split, size, claim.at_most_once)
  entries[i] = write_entry(since_ms, level, bytes, id)
  records[2 * i - 1], records[2 * i] = id, record
end

-- Frees first, so that it also works when the server is out of memory.
call_many('HDEL', own, ids)
if left > step then
  redis.call('LTRIM', batch, 0, -step - 1)
else
  close_claim(claim.bell)
  redis.call('ZADD', done, int(now + window_ms), lost_token(token))
end
call_many('HSET', attempts, records)
if #entries > 0 then
  if claim.route ~= '' then
    redis.call('HSETNX', routes, group, claim.route)
  end
  give_back(entries)
end
if left > step then
  arm(redis.call('LLEN', pending), rung, true)
  return {'more'}
end
redis.call('HINCRBY', stats, 'reclaimed', 1)
local signals = arm(redis.call('LLEN', pending), rung)
return {'reclaimed', #entries, signals, claim.route}
