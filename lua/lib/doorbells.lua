-- doorbells: how many are out for a group, and how many more to ring.
-- Uses: clock, values

-- At most this many doorbells of one group are out at a time: each claim that leaves a batch behind
-- rings for it, so a few keep any number of workers busy, and a backlog does not flood the broker.
local MAX_BELLS = 16

-- A record of bells is outstanding:rung_ms:pause_ms:feared:fills; rung_ms is when the last one was
-- rung or answered. If that lies in the future, because the clock went back, it counts as a pause
-- ago: else it would be waited for until then. `fills` is the flush_every of who answered last.
local function read_bells(record)
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
local function ring(state, claimable)
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
