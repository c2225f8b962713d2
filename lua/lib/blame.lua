-- blame: what the record of attempts of a request says once a run has given it back, or has died.
-- Uses: attempts, clock, records, trigger

-- How long a request waits that was put back so often before: it doubles each time, up to 10 minutes.
local function back_off(delay_ms, before)
  local repeated_ms = before > 0 and MIN_PAUSE_MS * 2 ^ (before - 1) or 0
  return math.min(math.max(delay_ms * 2 ^ before, repeated_ms), MAX_PAUSE_MS)
end

-- The level at which no batch holds more than half of a batch of `size`.
local function halve(split, size)
  repeat
    split = split + 1
    local limit = split_limit(split)
  until limit <= math.max(1, math.floor(size / 2))
  return split
end

-- Counts a put-back; returns how long it waits. It keeps its age: what its run may have told
-- meanwhile is known to be its own by that. `size` is that of its batch.
local function put_back(state, verb, size, delay_ms, since_ms)
  local field = verb == 'put_back' and 'put_backs' or 'postponed'
  local before = state[field]
  if verb == 'put_back' and before > 0 then
    state.split = halve(state.split, size)
  end
  state[field], state.since_ms = before + 1, since_ms
  return back_off(delay_ms, before)
end

-- Counts a retry; `well_ms` is when a batch of the task last went well.
local function try(state, verb, size, well_ms)
  if verb == 'retry_batch' and state.tries > 0 and well_ms > state.tried_ms then
    state.split = halve(state.split, size)
  end
  state.tries, state.tried_ms, state.since_ms = state.tries + 1, now, 0
end

-- The record of a request whose run died, and its level of halving; most of a batch are alike.
local struck = {}
local function strike(record, split, size, at_most_once)
  local key = (record or '') .. '|' .. split
  if not struck[key] then
    local state = read_attempts(record)
    state.crashes = state.crashes + 1
    state.split = split == FRESH and 0 or tonumber(split) or 0
    state.lost = at_most_once and 1 or 0
    if size == 1 then
      state.alone = state.alone + 1
    else
      state.split = halve(state.split, size)
    end
    struck[key] = {write_attempts(state), state.split}
  end
  return unpack(struck[key])
end
