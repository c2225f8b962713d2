-- outcomes: what a release is to write, outcome by outcome.
-- Uses: attempts, blame, clock, records, values
-- Needs: group, outcomes, size, window_ms

local given = {
  ids = {}, at_once = {}, later = {}, letters = {}, tombstones = {}, records = {}, errors = {},
  counts = {put_back = 0, postpone = 0},
}

-- Gives back the request of one of the outcomes, which the run still owns; `well_ms` is when a batch
-- of the task last went well.
local function give(i, nonce, record, well_ms)
  local id, since_ms, verb, delay_ms, error = unpack(outcomes, 5 * i - 4, 5 * i)
  since_ms, delay_ms = tonumber(since_ms), tonumber(delay_ms)
  local ids, records, errors, later = given.ids, given.records, given.errors, given.later
  local state, member = read_attempts(record), group .. ':' .. id
  if given.counts[verb] then
    given.counts[verb] = given.counts[verb] + 1
    delay_ms = put_back(state, verb, size, delay_ms, since_ms)
  else
    try(state, verb, size, well_ms)
    -- A retry of what was revoked is not to run, so it is told at once.
    delay_ms = state.revoked == 1 and 0 or delay_ms
  end
  ids[#ids + 1] = id
  records[#records + 1], records[#records + 2] = id, write_attempts(state)
  if error ~= '' then
    errors[#errors + 1], errors[#errors + 2] = id, error
  end
  if verb == 'dead' then
    local letters, tombstones = given.letters, given.tombstones
    letters[#letters + 1], letters[#letters + 2] = int(now), member
    -- The letter may be dropped while its call is still being sent again.
    tombstones[#tombstones + 1], tombstones[#tombstones + 2] = int(now + window_ms), nonce
  elseif delay_ms > 0 then
    later[#later + 1], later[#later + 2] = int(now + delay_ms), member
  else
    given.at_once[#given.at_once + 1] = write_entry(since_ms, state.split, '', id)
  end
end
