-- clamp: what lies further ahead than its record allows was written before the clock went back.
-- Uses: attempts, claims, clock, doorbells, trigger, values
-- Needs: claims, leases, groups, bells, attempts, delayed, stats, limit, longest_ms, window_ms

-- Every record of a key allows `least_ms`.
local function clamp(key, least_ms, allowed_ms)
  local over = '(' .. int(now + least_ms)
  local farthest =
    redis.call('ZREVRANGEBYSCORE', key, '+inf', over, 'WITHSCORES', 'LIMIT', 0, limit)
  for i = 1, #farthest, 2 do
    local ahead_ms = tonumber(farthest[i + 1]) - now
    local bound_ms = allowed_ms(farthest[i], tonumber(farthest[i + 1]))
    if ahead_ms > bound_ms then
      redis.call('ZADD', key, int(now + bound_ms), farthest[i])
    end
  end
end

local function clamp_all()
  clamp(groups, interval_ms, function(group)
    return math.max(interval_ms, read_bells(redis.call('HGET', bells, group)).pause_ms)
  end)
  clamp(leases, 0, function(token)
    return read_claim(redis.call('HGET', claims, token)).lease_ms
  end)
  -- A retry may have any delay: it began when the request was last tried.
  clamp(delayed, longest_ms, function(member, ready_ms)
    local id = string.match(member, '^[^:]*:(.*)$')
    local tried_ms = read_attempts(redis.call('HGET', attempts, id)).tried_ms
    local own_ms = tried_ms > 0 and ready_ms - tried_ms or longest_ms
    return tried_ms > now and own_ms or math.max(own_ms, longest_ms)
  end)
  if tonumber(redis.call('HGET', stats, 'forgotten_ms') or 0) > now + window_ms then
    redis.call('HSET', stats, 'forgotten_ms', int(now + window_ms))
  end
end
