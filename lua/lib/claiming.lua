-- claiming: how a claim ends: a batch is leased, or what waits is left.
-- Uses: ahead, arm, batches, clock, doorbells, pending, records, routes, rows, selection, stale
-- Uses: trigger, values
-- Needs: group, token, pending, claims, groups, bells, stats, bell, counted, follows, lease_ms
-- Needs: rung_ms

-- Answers this doorbell: one fewer is out. If others were feared for, and this one was rung last of
-- all, then it has overtaken them: they are lost.
local function answer_bell(rung)
  if bell == '' or not counted or follows then
    return
  end
  rung.out = math.max(rung.out - 1, 0)
  if rung.feared and rung_ms >= rung.rung_ms then
    rung.out = 0
  end
  rung.feared = rung.feared and rung.out > 0
  rung.rung_ms, rung.pause_ms, rung.fills = now, MIN_PAUSE_MS, flush_every
  redis.call('HSET', bells, group, write_bells(rung))
end

-- Leaves what was chosen, without what waits no longer.
local function leave(chosen, rung)
  if chosen.paused and waiting >= flush_every then
    clean_ahead(chosen)
  end
  -- Frees first: what is stale goes, what is not due stays.
  local skipped = chosen.scanned > #chosen.entries
  redis.call('LTRIM', pending, skipped and chosen.scanned or 0, -1)
  note_stale(chosen.entries)
  if skipped then
    put_first(chosen.entries)
  end
  local waits = waiting - chosen.scanned + #chosen.entries
  local more = chosen.open and not chosen.paused and chosen.scanned < waiting
  if not more then
    answer_bell(rung)
  end
  arm(waits, rung, true)
  if more then
    return {'more'}
  end
  if waits == 0 then
    forget_route(group, false)
    return {'empty'}
  end
  local attention = tonumber(redis.call('ZSCORE', groups, group) or now)
  return {'not_due', int(math.max(attention - now, 0))}
end

-- Takes what was chosen out of the list, and leases it.
local function lease(claim, chosen, rung)
  local waits = waiting - chosen.scanned
  redis.call('LTRIM', pending, chosen.scanned, -1)
  note_stale({})
  if chosen.cut then
    -- What found no room waits no longer for others.
    local since_ms, _, id, size = read_entry(redis.call('LINDEX', pending, 0))
    redis.call('LSET', pending, 0, write_entry(since_ms, chosen.level, size, id))
  end
  local is_new = not claim.progress
  claim.progress = chosen.paused and chosen.level .. ',' .. int(chosen.bytes) or ''
  open_claim(claim, now + lease_ms, chosen.entries, chosen.owners)
  if is_new then
    redis.call('HSET', stats, 'fence', int(claim.fence))
  end
  if bell ~= '' then
    redis.call('HSET', claims, 'bell:' .. bell, token)
  end
  local rows = rows_of(chosen.entries, chosen.ids, chosen.values)
  if chosen.paused then
    arm(waits, rung, true)
    local has = chosen.had + #chosen.entries
    return {'part', int(claim.fence), int(claim.started_ms), has, claim.route, joined(rows)}
  end
  redis.call('HINCRBY', stats, 'claimed', 1)
  answer_bell(rung)
  local signals = arm(waits, rung)
  forget_route(group, waits > 0)
  return {'claimed', int(claim.fence), int(claim.started_ms), signals, claim.route, joined(rows)}
end
