-- batches: a claim's requests are leased to its token, and let go.
-- Uses: clock, values
-- Needs: token, batch, claims, own, leases, stats

local function write_claim(claim)
  return table.concat({
    claim.group, int(claim.fence), int(claim.started_ms), int(claim.lease_ms),
    int(claim.deadline_ms), claim.at_most_once and 1 or 0, claim.progress, claim.bell, claim.route,
  }, '|')
end

-- The tombstone of a run whose batch was taken back.
local function lost_token(token)
  return 'lost:' .. token
end

-- The fence of a new claim: larger than any before it, also if a failover lost the last ones.
local function next_fence()
  return math.max(tonumber(redis.call('HGET', stats, 'fence') or 0) + 1, now)
end

-- Leases entries until `expiry_ms`; `owners` are their ids, each with token:nonce.
local function open_claim(claim, expiry_ms, entries, owners)
  call_many('RPUSH', batch, entries)
  call_many('HSET', own, owners)
  redis.call('HSET', claims, token, write_claim(claim))
  redis.call('ZADD', leases, int(expiry_ms), token)
end

-- Forgets a claim of which nothing is owned any more. Its doorbell, if it came once more after the
-- lease had expired, may have started another run since.
local function close_claim(bell)
  redis.call('DEL', batch)
  redis.call('ZREM', leases, token)
  redis.call('HDEL', claims, token)
  if redis.call('HGET', claims, 'bell:' .. bell) == token then
    redis.call('HDEL', claims, 'bell:' .. bell)
  end
end

-- Of some entries, and their ids, those whose requests the token still owns.
local function owned_of(entries, ids)
  local mine, mine_ids = {}, {}
  for i, owner in ipairs(call_many('HMGET', own, ids)) do
    if owner and string.match(owner, '^[^:]*') == token then
      mine[#mine + 1], mine_ids[#mine_ids + 1] = entries[i], ids[i]
    end
  end
  return mine, mine_ids
end
