-- pending: the list in which the requests of a group wait.
-- Uses: values
-- Needs: pending

-- Puts entries at the head, in their order.
local function put_first(entries)
  local reversed = {}
  for i = #entries, 1, -1 do
    reversed[#reversed + 1] = entries[i]
  end
  call_many('LPUSH', pending, reversed)
end
