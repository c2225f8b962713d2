-- routes: where to ring for a group is known as long as anything of it is stored.
-- Needs: routes, parked

-- Counts what of a group neither waits nor runs: delayed requests and dead letters.
local function park(group, change)
  if change ~= 0 and redis.call('HINCRBY', parked, group, change) <= 0 then
    redis.call('HDEL', parked, group)
  end
end

-- Forgets where to ring for a group of which nothing is parked or waits; what runs knows it, too.
local function forget_route(group, waits)
  if not waits and redis.call('HEXISTS', parked, group) == 0 then
    redis.call('HDEL', routes, group)
  end
end
