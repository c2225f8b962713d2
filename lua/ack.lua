-- ack: forget requests whose outcome was told, and end the batch once nothing of it is owned.
--
-- KEYS[1] items     hash  id -> group:nonce:size:envelope
-- KEYS[2] batch     list  the claimed entries of this token
-- KEYS[3] claims    hash  token -> record; bell:id -> token
-- KEYS[4] own       hash  id -> token:nonce
-- KEYS[5] leases    zset  token -> expiry (ms)
-- KEYS[6] attempts  hash  id -> record of attempts
-- KEYS[7] errors    hash  id -> text of the last error
-- KEYS[8] done      zset  nonce or token -> expiry (ms)
-- KEYS[9] stats     hash  counters
-- ARGV[1]  now_ms     int   empty: the server's time
-- ARGV[2]  token      text
-- ARGV[3]  fence      text  of the claim
-- ARGV[4]  window_ms  int   how long a finished call is remembered
-- ARGV[5]  window     int   how many finished calls are remembered
-- ARGV[6]  well       int   1: the batch's function returned
-- ARGV[7]  ends       int   1: the batch ends with this call
-- ARGV[8]  ids        text  of requests whose outcome was told, with spaces between; at most 1,000
--
-- Nothing is forgotten but what is named. What the run still owns when its batch ends was given
-- back in a write that a failover lost: the lease stays then, and brings it back.
-- Returns {"acked", count}; {"more", count}: it has looked through 1,000 entries of the batch, and
-- the same call without ids goes on; {"kept", count}: the lease stays; and for a token without a
-- claim, which changes nothing, {"already"} (the batch ended before) or {"fenced"} (another worker
-- took over). Cost O(ids + 1,000).
local items, batch, claims, own, leases = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local attempts, errors, done, stats = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local now_ms, token, fence = ARGV[1], ARGV[2], ARGV[3]
local window_ms, window = tonumber(ARGV[4]), tonumber(ARGV[5])
local well, ends, ids = ARGV[6] == '1', ARGV[7] == '1', ARGV[8]

local now = clock(now_ms)
local named = {}
for id in string.gmatch(ids, '%S+') do
  named[#named + 1] = id
end
local record = redis.call('HGET', claims, token)
local ended = redis.call('ZSCORE', done, token)
if not is_claim(record, fence) then
  return {ended and 'already' or 'fenced'}
end
local owners = call_many('HMGET', own, named)
redis.call('HLEN', items)
local size = redis.call('LLEN', batch)
redis.call('ZCARD', leases)
local failed_before = redis.call('HLEN', attempts) + redis.call('HLEN', errors) > 0
redis.call('HLEN', stats)

local mine, forgets, tombstones, forgotten_ms = {}, {}, {}, int(now + window_ms)
for i, id in ipairs(named) do
  local owner, nonce = string.match(owners[i] or '', '^([^:]*):(.*)$')
  if owner == token and not forgets[id] then
    local count = #mine
    mine[count + 1], forgets[id] = id, true
    tombstones[2 * count + 1], tombstones[2 * count + 2] = forgotten_ms, nonce
  end
end

-- Looks through the batch from its head: how many entries are settled, and what the run still owns.
local function look()
  if size == #mine then
    return size
  end
  local entries = redis.call('LRANGE', batch, 0, CHUNK - 1)
  local found = ids_of(entries)
  for i, owner in ipairs(call_many('HMGET', own, found)) do
    if owner and string.match(owner, '^[^:]*') == token and not forgets[found[i]] then
      return i - 1
    end
  end
  return #entries
end

local settled = ends and look() or 0
local closes = ends and settled == size
local function answer()
  if not ends or closes then
    return {'acked', #mine}
  elseif settled == CHUNK then
    return {'more', #mine}
  end
  return {'kept', #mine}
end
if #mine == 0 and settled == 0 and not closes then
  return answer()
end

-- Frees first, so that it also works when the server is out of memory.
call_many('HDEL', items, mine)
call_many('HDEL', own, mine)
if failed_before then
  call_many('HDEL', attempts, mine)
  call_many('HDEL', errors, mine)
end
if closes then
  close_claim(batch, claims, leases, token, read_claim(record).bell)
  tombstones[#tombstones + 1] = forgotten_ms
  tombstones[#tombstones + 1] = token
elseif settled > 0 then
  redis.call('LTRIM', batch, settled, -1)
end
if #tombstones > 0 then
  -- Prunes twice what it adds: the tombstones shrink even while they are added to.
  local expired = redis.call('ZRANGEBYSCORE', done, '-inf', int(now), 'LIMIT', 0, #tombstones)
  call_many('ZREM', done, expired)
  -- Before it adds: after the clock went back, what ends now would be the first to go.
  local known = redis.call('ZCARD', done)
  local last = math.min(known + #tombstones / 2 - window, known, #tombstones) - 1
  if last >= 0 then
    -- What ended before is not surely remembered: a push that is sent again goes by that.
    local expiry_ms = tonumber(redis.call('ZRANGE', done, last, last, 'WITHSCORES')[2])
    local known_ms = tonumber(redis.call('HGET', stats, 'forgotten_ms') or 0)
    redis.call('HSET', stats, 'forgotten_ms', int(math.max(expiry_ms, known_ms)))
    redis.call('ZREMRANGEBYRANK', done, 0, last)
  end
  call_many('ZADD', done, tombstones)
end
if #mine > 0 then
  redis.call('HINCRBY', stats, 'acked', #mine)
end
if well then
  redis.call('HSET', stats, 'well_ms', int(now))
end
return answer()
