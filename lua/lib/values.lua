-- values: numbers and many strings as text, and commands with any number of values.

-- `unpack` fails between 7,000 and 8,000 values.
local CHUNK = 1000

local function int(number)
  return string.format('%.0f', number)
end

-- Many strings as two, which a client reads several times as fast: their lengths, and all in a row.
local function joined(strings)
  local lengths, texts = {}, {}
  for i, each in ipairs(strings) do
    -- To write a number takes as long as all else here, and most are equal.
    local length = #each
    texts[length] = texts[length] or tostring(length)
    lengths[i] = texts[length]
  end
  return table.concat(lengths, ' '), table.concat(strings)
end

-- Calls a command with any number of values, a chunk at a time; joins what it returns.
local function call_many(command, key, values)
  if #values > 0 and #values <= CHUNK then
    return redis.call(command, key, unpack(values))
  end
  local joined = {}
  for first = 1, #values, CHUNK do
    local last = math.min(first + CHUNK - 1, #values)
    local reply = redis.call(command, key, unpack(values, first, last))
    if type(reply) == 'table' then
      for _, value in ipairs(reply) do
        joined[#joined + 1] = value
      end
    end
  end
  return joined
end
