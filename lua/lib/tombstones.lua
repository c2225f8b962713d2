-- tombstones: which calls and runs have ended is remembered, for a while and up to a number.
-- Uses: clock, values
-- Needs: done, stats, window

-- Remembers (expiry_ms, nonce or token)*, and forgets what is too old, or too much.
local function remember(tombstones)
  if #tombstones == 0 then
    return
  end
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
