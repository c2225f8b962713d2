-- reclaim: take a batch back from a run that died: its lease expired, or somebody saw it die.
--
-- KEYS[1]  items     hash  id -> group:nonce:size:envelope
-- KEYS[2]  pending   list  since_ms:split:size:id, oldest first
-- KEYS[3]  batch     list  the claimed entries of this token
-- KEYS[4]  claims    hash  token -> record; bell:id -> token
-- KEYS[5]  own       hash  id -> token:nonce
-- KEYS[6]  leases    zset  token -> expiry (ms)
-- KEYS[7]  groups    zset  group -> when it next wants attention (ms)
-- KEYS[8]  bells     hash  group -> outstanding:rung_ms:pause_ms:feared:fills
-- KEYS[9]  routes    hash  group -> where to ring for it (JSON)
-- KEYS[10] attempts  hash  id -> record of attempts
-- KEYS[11] done      zset  nonce or token -> expiry (ms)
-- KEYS[12] stats     hash  counters
-- KEYS[13] stale     hash  group:id -> its entries from the head: s stale, l live
-- ARGV[1] now_ms       int   empty: the server's time
-- ARGV[2] group        text
-- ARGV[3] token        text
-- ARGV[4] flush_every  int
-- ARGV[5] interval_ms  int
-- ARGV[6] window_ms    int   how long the run is remembered, so that it cannot claim again
-- ARGV[7] seen_dead    int   1: the run is known to be dead, the lease need not have expired
-- ARGV[8] step         int   requests that one call gives back at most
--
-- A crash halves: what is given back waits in batches of half the size, so that a request that
-- kills its worker ends alone. Returns {"reclaimed", count, signals, route}, {"alive", wait_ms},
-- {"gone"}, or {"more"} of a batch that is more than a step: the same call again goes on. From the
-- first step on the run has lost its lease; the first ones give nothing back, but count. Whoever dies
-- between two steps leaves the rest to the next sweep. Cost O(step + 1,000).
local items, pending, batch, claims, own = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local leases, groups, bells, routes = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local attempts, done, stats, stale = KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local now_ms, group, token, flush_every = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local interval_ms, window_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local seen_dead, step = ARGV[7] == '1', tonumber(ARGV[8])

local now = clock(now_ms)
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
local mine = owned_entries(batch, own, token, first, last)
redis.call('HLEN', items)
redis.call('LLEN', pending)
redis.call('ZCARD', groups)
redis.call('HLEN', bells)
redis.call('HLEN', routes)
redis.call('HLEN', attempts)
redis.call('ZCARD', done)
redis.call('HLEN', stats)
redis.call('HLEN', stale)

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

-- The record of a request that this run did not end, and its level of halving; most are alike.
local known = {}
local function struck(record, split)
  local key = (record or '') .. '|' .. split
  if not known[key] then
    local state = read_attempts(record)
    state.crashes = state.crashes + 1
    state.split = split == FRESH and 0 or tonumber(split) or 0
    state.lost = claim.at_most_once and 1 or 0
    if size == 1 then
      state.alone = state.alone + 1
    else
      state.split = halve(flush_every, state.split, size)
    end
    known[key] = {write_attempts(state), state.split}
  end
  return unpack(known[key])
end

local ids, entries, records = ids_of(mine), {}, {}
local before = call_many('HMGET', attempts, ids)
for i, entry in ipairs(mine) do
  local since_ms, split, id, bytes = read_entry(entry)
  local record, level = struck(before[i], split)
  entries[i] = write_entry(since_ms, level, bytes, id)
  records[2 * i - 1], records[2 * i] = id, record
end

-- Frees first, so that it also works when the server is out of memory.
call_many('HDEL', own, ids)
if left > step then
  redis.call('LTRIM', batch, 0, -step - 1)
else
  close_claim(batch, claims, leases, token, claim.bell)
  redis.call('ZADD', done, int(now + window_ms), lost_token(token))
end
call_many('HSET', attempts, records)
if #entries > 0 then
  if claim.route ~= '' then
    redis.call('HSETNX', routes, group, claim.route)
  end
  give_back(pending, stale, group, entries)
end
if left > step then
  arm(pending, groups, bells, group, flush_every, interval_ms, now, true)
  return {'more'}
end
redis.call('HINCRBY', stats, 'reclaimed', 1)
local signals = arm(pending, groups, bells, group, flush_every, interval_ms, now)
return {'reclaimed', #entries, signals, claim.route}
