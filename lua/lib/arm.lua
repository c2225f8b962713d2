-- arm: what follows from a change of a pending list: doorbells, and when a sweep looks at it.
-- Uses: clock, doorbells, trigger, values
-- Needs: group, pending, groups, bells

-- Counts the batches that can be claimed now of the entries that wait, books the doorbells that the
-- caller must ring for them in the record that it has read, and notes when the group next wants
-- attention. Level, not edge: a lost doorbell is made good by the next script that looks. What is not
-- full for whoever answers is not rung for: callers and workers of two deploys have different sizes.
-- Returns doorbells to ring; if `quiet` none: the next sweep rings for what can be claimed.
local function arm(waits, rung, quiet)
  if waits == 0 then
    redis.call('ZREM', groups, group)
    redis.call('HDEL', bells, group)
    return 0
  end
  local head = redis.call('LINDEX', pending, 0)
  local claimable = claimable_of(waits, head, math.max(flush_every, rung.fills))
  if claimable == 0 then
    redis.call('ZADD', groups, int(due_ms(head)), group)
    return 0
  end
  local signals = quiet and 0 or ring(rung, claimable)
  if signals > 0 then
    redis.call('HSET', bells, group, write_bells(rung))
  end
  redis.call('ZADD', groups, int(rung.out > 0 and rung.rung_ms + rung.pause_ms or now), group)
  return signals
end
