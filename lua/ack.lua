-- ack: forget requests whose outcome was told, and end the batch once nothing of it is owned.
-- Uses: batches, claims, clock, records, tombstones, values
--
-- KEYS[1] items     hash!  id -> group:nonce:size:envelope
-- KEYS[2] batch     list   the claimed entries of this token
-- KEYS[3] claims    hash   token -> record; bell:id -> token
-- KEYS[4] own       hash   id -> token:nonce
-- KEYS[5] leases    zset!  token -> expiry (ms)
-- KEYS[6] attempts  hash   id -> record of attempts
-- KEYS[7] errors    hash   id -> text of the last error
-- KEYS[8] done      zset   nonce or token -> expiry (ms)
-- KEYS[9] stats     hash!  counters
-- ARGV[1] now_ms     int   empty: the server's time
-- ARGV[2] token      text
-- ARGV[3] fence      text  of the claim
-- ARGV[4] window_ms  int   how long a finished call is remembered
-- ARGV[5] window     int   how many finished calls are remembered
-- ARGV[6] well       flag  the batch's function returned
-- ARGV[7] ends       flag  the batch ends with this call
-- ARGV[8] ids        text  of requests whose outcome was told, with spaces between; at most 1,000
--
-- Returns {"acked", count}
--         {"more", count}  1,000 entries were looked through: the same call without ids goes on
--         {"kept", count}  the run still owns something: the lease stays
--         {"already"}      the batch ended before: nothing is changed
--         {"fenced"}       another worker took over: nothing is changed
-- What the run still owns at its end was given back in a write that a failover lost: the lease brings
-- it back. Cost O(ids + 1,000).

local named = {}
for id in string.gmatch(ids, '%S+') do
  named[#named + 1] = id
end
local record, ended = redis.call('HGET', claims, token), redis.call('ZSCORE', done, token)
if not is_claim(record, fence) then
  return {ended and 'already' or 'fenced'}
end
local owners = call_many('HMGET', own, named)
local size = redis.call('LLEN', batch)
local failed_before = redis.call('HLEN', attempts) + redis.call('HLEN', errors) > 0

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
  if ends and not closes then
    return {settled == CHUNK and 'more' or 'kept', #mine}
  end
  return {'acked', #mine}
end
if #mine == 0 and settled == 0 and not closes then
  return answer()
end

guard()
-- Frees first, so that it also works when the server is out of memory.
call_many('HDEL', items, mine)
call_many('HDEL', own, mine)
if failed_before then
  call_many('HDEL', attempts, mine)
  call_many('HDEL', errors, mine)
end
if closes then
  close_claim(read_claim(record).bell)
  tombstones[#tombstones + 1], tombstones[#tombstones + 2] = forgotten_ms, token
elseif settled > 0 then
  redis.call('LTRIM', batch, settled, -1)
end
remember(tombstones)
if #mine > 0 then
  redis.call('HINCRBY', stats, 'acked', #mine)
end
if well then
  redis.call('HSET', stats, 'well_ms', int(now))
end
return answer()
