-- prelude: what several scripts share; the loader puts it in front of each of them.

-- At most this many doorbells of one group are out at a time: each claim that leaves a batch behind
-- rings for it, so a few keep any number of workers busy, and a backlog does not flood the broker.
local MAX_BELLS = 16
-- How long a doorbell may stay unanswered before another one is rung.
local MIN_PAUSE_MS, MAX_PAUSE_MS = 1000, 600000
-- `unpack` fails between 7,000 and 8,000 values.
local CHUNK = 1000
-- The split level of an entry that was never given back.
local FRESH = '-'

local function int(number)
  return string.format('%.0f', number)
end

-- The server's time, or the one that a test injected.
local function clock(now_ms)
  if now_ms ~= '' then
    return tonumber(now_ms)
  end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Many strings as two, which a client reads several times as fast: their lengths, and all in a row.
local function joined(strings)
  local lengths, texts = {}, {}
  for i, each in ipairs(strings) do
    -- To write a number takes as long as all else here, and most are equal.
    local length = #each
    texts[length] = texts[length] or tostring(length)
    lengths[i] = texts[length]
  end
  return table.concat(lengths, ' '), table.concat(strings)
end

-- Calls a command with any number of values, a chunk at a time; joins what it returns.
local function call_many(command, key, values)
  if #values > 0 and #values <= CHUNK then
    return redis.call(command, key, unpack(values))
  end
  local joined = {}
  for first = 1, #values, CHUNK do
    local last = math.min(first + CHUNK - 1, #values)
    local reply = redis.call(command, key, unpack(values, first, last))
    if type(reply) == 'table' then
      for _, value in ipairs(reply) do
        joined[#joined + 1] = value
      end
    end
  end
  return joined
end

-- An entry of a pending list is since_ms:split:size:id; the size is that of its request, in bytes.
local function read_entry(entry)
  local since_ms, split, size, id = string.match(entry, '^(%d+):([^:]*):(%d*):(.*)$')
  return tonumber(since_ms or 0), split or '0', id or '', size or ''
end

local function ids_of(entries)
  local ids, splits, sizes = {}, {}, {}
  for i, entry in ipairs(entries) do
    local split, size, id = string.match(entry, '^%d+:([^:]*):(%d*):(.*)$')
    ids[i], splits[i], sizes[i] = id or '', split or '0', size or ''
  end
  return ids, splits, sizes
end

local function write_entry(since_ms, split, size, id)
  return int(since_ms) .. ':' .. split .. ':' .. size .. ':' .. id
end

-- What was given back is due at once, and so is what lies in the future: the clock went back.
local function is_due(entry, interval_ms, now)
  local since_ms, split = read_entry(entry)
  return split ~= FRESH or since_ms > now or since_ms + interval_ms <= now
end

-- A value of items is group:nonce:size:envelope; an empty nonce means that the id is the call's own,
-- an empty size that the envelope is as large as what a worker will hold of it.
local function read_nonce(value, id)
  local nonce = string.match(value, '^[^:]*:([^:]*):')
  return (nonce == nil or nonce == '') and id or nonce
end

-- The bytes that a worker will hold of a stored request; more than are stored if it is compressed.
local function read_size(value)
  local size = string.match(value, '^[^:]*:[^:]*:(%d*):')
  return math.max(tonumber(size or '') or 0, #value)
end

-- A record of bells is outstanding:rung_ms:pause_ms:feared:fills; rung_ms is when the last one was
-- rung or answered. If that lies in the future, because the clock went back, it counts as a pause
-- ago: else it would be waited for until then. `fills` is the flush_every of who answered last.
local function read_bells(record, now)
  local out, rung_ms, pause_ms, feared, fills =
    string.match(record or '', '^(%d+):(%d+):(%d+):(%d):(%d+)$')
  local state = {
    out = tonumber(out or 0), rung_ms = tonumber(rung_ms or now),
    pause_ms = tonumber(pause_ms or MIN_PAUSE_MS), feared = feared == '1',
    fills = tonumber(fills or 0),
  }
  if state.rung_ms > now then
    state.rung_ms = now - state.pause_ms
  end
  return state
end

local function write_bells(state)
  local feared = state.feared and 1 or 0
  return table.concat({state.out, int(state.rung_ms), int(state.pause_ms), feared, state.fills}, ':')
end

-- How many doorbells to ring when so many batches can be claimed; notes that they are out. While
-- nobody answers one more goes out after each pause, which doubles: the others may be lost.
local function ring(state, claimable, now)
  local signals = math.max(0, math.min(claimable, MAX_BELLS) - state.out)
  if state.out > 0 and state.rung_ms + state.pause_ms <= now then
    signals, state.feared = 1, true
    state.pause_ms = math.min(state.pause_ms * 2, MAX_PAUSE_MS)
  end
  if signals > 0 then
    state.out, state.rung_ms = state.out + signals, now
  end
  return signals
end

-- After a change of a pending list: counts the batches that can be claimed now, books the doorbells
-- that the caller must ring for them, and notes when the group next wants attention. Level, not
-- edge: a lost doorbell is made good by the next script that looks. What is not full for whoever
-- answers is not rung for: callers and workers of two deploys have different sizes. Returns doorbells
-- to ring; if `quiet` none: the next sweep rings for what can be claimed.
local function arm(pending, groups, bells, group, flush_every, interval_ms, now, quiet)
  local waiting = redis.call('LLEN', pending)
  if waiting == 0 then
    redis.call('ZREM', groups, group)
    redis.call('HDEL', bells, group)
    return 0
  end
  local head = redis.call('LINDEX', pending, 0)
  local state = read_bells(redis.call('HGET', bells, group), now)
  local size = math.max(flush_every, state.fills)
  local claimable = math.floor(waiting / size)
  if is_due(head, interval_ms, now) then
    claimable = math.ceil(waiting / size)
  end
  if claimable == 0 then
    redis.call('ZADD', groups, int(read_entry(head) + interval_ms), group)
    return 0
  end
  local signals = quiet and 0 or ring(state, claimable, now)
  if signals > 0 then
    redis.call('HSET', bells, group, write_bells(state))
  end
  redis.call('ZADD', groups, int(state.out > 0 and state.rung_ms + state.pause_ms or now), group)
  return signals
end

-- Puts entries at the head of a pending list, in their order.
local function put_first(pending, entries)
  local reversed = {}
  for i = #entries, 1, -1 do
    reversed[#reversed + 1] = entries[i]
  end
  call_many('LPUSH', pending, reversed)
end

-- Gives entries back: before those that were never claimed, by age among what was given back, too.
-- So the head alone says whether anything is due.
local function give_back(pending, stale, group, entries)
  local merged, age, place, newest, ordered = {}, {}, {}, 0, true
  local function add(entry)
    local since_ms = read_entry(entry)
    merged[#merged + 1] = entry
    age[entry], place[entry] = since_ms, #merged
    ordered, newest = ordered and since_ms >= newest, since_ms
  end
  local any_stale = redis.call('HLEN', stale) > 0
  for _, entry in ipairs(entries) do
    add(entry)
    local _, _, id = read_entry(entry)
    local marks = any_stale and redis.call('HGET', stale, group .. ':' .. id)
    if marks then
      redis.call('HSET', stale, group .. ':' .. id, 'l' .. marks)
    end
  end
  local head_ms, head_split = read_entry(redis.call('LINDEX', pending, 0) or '')
  if ordered and (head_split == FRESH or head_ms >= newest) then
    put_first(pending, entries)
    return
  end
  local earlier = 0
  for _, entry in ipairs(redis.call('LRANGE', pending, 0, CHUNK - 1)) do
    local _, split = read_entry(entry)
    if split == FRESH then
      break
    end
    earlier = earlier + 1
    add(entry)
  end
  if not ordered then
    table.sort(merged, function(a, b)
      return age[a] < age[b] or age[a] == age[b] and place[a] < place[b]
    end)
  end
  redis.call('LTRIM', pending, earlier, -1)
  put_first(pending, merged)
end

-- A record of attempts is
-- tries:crashes:alone:split:lost:tried_ms:revoked:put_backs:postponed:earlier:since_ms.
local function read_attempts(record)
  local tries, crashes, alone, split, lost, tried_ms, revoked, put_backs, postponed, earlier,
    since_ms = string.match(record or '',
      '^(%d+):(%d+):(%d+):(%d+):(%d):(%d+):(%d):(%d+):(%d+):(%d+):(%d+)$')
  return {
    tries = tonumber(tries or 0), crashes = tonumber(crashes or 0), alone = tonumber(alone or 0),
    split = tonumber(split or 0), lost = tonumber(lost or 0), tried_ms = tonumber(tried_ms or 0),
    revoked = tonumber(revoked or 0), put_backs = tonumber(put_backs or 0),
    postponed = tonumber(postponed or 0), earlier = tonumber(earlier or 0),
    since_ms = tonumber(since_ms or 0),
  }
end

local function write_attempts(state)
  return table.concat({
    state.tries, state.crashes, state.alone, state.split, state.lost, int(state.tried_ms),
    state.revoked, state.put_backs, state.postponed, state.earlier, int(state.since_ms),
  }, ':')
end

-- How long a request waits that was put back so often before: it doubles each time, up to 10 minutes.
local function back_off(delay_ms, before)
  local repeated_ms = before > 0 and MIN_PAUSE_MS * 2 ^ (before - 1) or 0
  return math.min(math.max(delay_ms * 2 ^ before, repeated_ms), MAX_PAUSE_MS)
end

-- What a record says once its request is revoked: whoever claims it tells so, and does not run it.
local function revoke_attempts(record)
  local state = read_attempts(record)
  state.revoked = 1
  return write_attempts(state)
end

-- The most requests that one batch of a split level holds.
local function split_limit(flush_every, split)
  return math.max(1, math.floor(flush_every / 2 ^ split))
end

-- The level at which no batch holds more than half of a batch of `size`.
local function halve(flush_every, split, size)
  repeat
    split = split + 1
    local limit = split_limit(flush_every, split)
  until limit <= math.max(1, math.floor(size / 2))
  return split
end

-- What a record says in the place of its fence once its run is dead: no run has it.
local NO_FENCE = '0'

-- A record of claims is group|fence|started_ms|lease_ms|deadline_ms|at_most_once|progress|bell|route.
-- The progress is empty for a batch that is whole; of one that is claimed in steps it is split,bytes
-- of what it has; of one that is taken back in steps, how many it held: seen,held while they are
-- counted.
local function read_claim(record)
  local group, fence, started_ms, lease_ms, deadline_ms, once, progress, bell, route =
    string.match(record or '', '^([^|]*)|(%d+)|(%d+)|(%d+)|(%d+)|(%d)|([^|]*)|([^|]*)|(.*)$')
  return {
    group = group or '', fence = fence or '0', started_ms = tonumber(started_ms or 0),
    lease_ms = tonumber(lease_ms or 0), deadline_ms = tonumber(deadline_ms or 0),
    at_most_once = once == '1', progress = progress or '', bell = bell or '', route = route or '',
  }
end

local function write_claim(claim)
  return table.concat({
    claim.group, int(claim.fence), int(claim.started_ms), int(claim.lease_ms),
    int(claim.deadline_ms), claim.at_most_once and 1 or 0, claim.progress, claim.bell, claim.route,
  }, '|')
end

-- The fence of a new claim: larger than any before it, also if a failover lost the last ones.
local function next_fence(stats, now)
  return math.max(tonumber(redis.call('HGET', stats, 'fence') or 0) + 1, now)
end

-- Counts what of a group neither waits nor runs: delayed requests and dead letters.
local function park(parked, group, change)
  if change ~= 0 and redis.call('HINCRBY', parked, group, change) <= 0 then
    redis.call('HDEL', parked, group)
  end
end

-- Forgets where to ring for a group of which nothing is parked or waits; what runs knows it, too.
local function forget_route(routes, parked, group, waits)
  if not waits and redis.call('HEXISTS', parked, group) == 0 then
    redis.call('HDEL', routes, group)
  end
end

-- Leases entries to a token; `owners` are their ids, each with token:nonce.
local function open_claim(batch, claims, own, leases, token, claim, expiry_ms, entries, owners)
  call_many('RPUSH', batch, entries)
  call_many('HSET', own, owners)
  redis.call('HSET', claims, token, write_claim(claim))
  redis.call('ZADD', leases, int(expiry_ms), token)
end

-- Whether a record is that of the claim which a run knows by its fence. A call of `claim` that was
-- held up for longer than its run is remembered starts another claim under the old token.
local function is_claim(record, fence)
  return record and read_claim(record).fence == fence
end

-- The tombstone of a run whose batch was taken back.
local function lost_token(token)
  return 'lost:' .. token
end

-- Forgets a claim of which nothing is owned any more. Its doorbell, if it came once more after the
-- lease had expired, may have started another run since.
local function close_claim(batch, claims, leases, token, bell)
  redis.call('DEL', batch)
  redis.call('ZREM', leases, token)
  redis.call('HDEL', claims, token)
  if redis.call('HGET', claims, 'bell:' .. bell) == token then
    redis.call('HDEL', claims, 'bell:' .. bell)
  end
end

-- The entries of a batch, from one place to another, whose requests this token still owns.
local function owned_entries(batch, own, token, first, last)
  local entries, mine = redis.call('LRANGE', batch, first, last), {}
  for i, owner in ipairs(call_many('HMGET', own, ids_of(entries))) do
    if owner and string.match(owner, '^[^:]*') == token then
      mine[#mine + 1] = entries[i]
    end
  end
  return mine
end
