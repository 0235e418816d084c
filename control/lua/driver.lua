-- What runs in each interpreter of control.lua: `lua5.4 driver.lua TOKEN REQUESTS ANSWERS` (docs/lua.md).
--
-- Requests come over the one descriptor, answers go over the other, each a frame: one letter, a length (u32), so many
-- bytes. The terminal belongs to the code that is run. After each answer a mark with TOKEN goes to the terminal: all
-- that was printed stands before it.

local token = arg[1]
local requests = assert(io.open("/dev/fd/" .. arg[2], "rb"))
local answers = assert(io.open("/dev/fd/" .. arg[3], "wb"))
local request_descriptor = tonumber(arg[2])
local terminal_in, terminal_out = io.stdin, io.stdout
local pack, unpack = string.pack, string.unpack
local open, remove, hook, traceback = io.open, os.remove, debug.sethook, debug.traceback
local DEPTH_MAX = 100
local STEPS = 1000000 -- instructions between two looks for a wish to interrupt: some 20 ms
local BEGUN = pack("<c1s4", "b", pack("<I4", 0))
local INTERRUPTED = "interrupted!" -- lua.c's own word for SIGINT

arg = nil
math.randomseed() -- else each interpreter of one moment draws the same numbers

-- values --------------------------------------------------------------------------------------------------------------

local put

local function put_table(into, value, depth)
  if depth > DEPTH_MAX then
    error("a table holds itself, or is nested more than " .. DEPTH_MAX .. " deep", 0)
  end
  local count = 0
  for _ in next, value do
    count = count + 1
  end
  if count > 0 and count == rawlen(value) then
    into[#into + 1] = pack("<c1I4", "L", count)
    for index = 1, count do
      put(into, rawget(value, index), depth + 1)
    end
    return
  end
  into[#into + 1] = pack("<c1I4", "M", count)
  for key, item in next, value do
    local kind = type(key)
    if kind ~= "string" and kind ~= "number" and kind ~= "boolean" then
      error("a table with a " .. kind .. " as a key cannot be handed over", 0)
    end
    put(into, key, depth + 1)
    put(into, item, depth + 1)
  end
end

function put(into, value, depth)
  local kind = type(value)
  if kind == "nil" then
    into[#into + 1] = "N"
  elseif kind == "boolean" then
    into[#into + 1] = value and "T" or "F"
  elseif kind == "string" then
    into[#into + 1] = pack("<c1s4", "S", value)
  elseif kind == "number" then
    into[#into + 1] = math.type(value) == "integer" and pack("<c1i8", "I", value) or pack("<c1d", "D", value)
  elseif kind == "table" then
    put_table(into, value, depth)
  else
    into[#into + 1] = pack("<c1s4", "O", tostring(value))
  end
end

local function encode(values)
  local into = { pack("<I4", values.n) }
  for index = 1, values.n do
    put(into, values[index], 1)
  end
  return table.concat(into)
end

local take

local function take_table(data, at, kind)
  local result, count = {}
  count, at = unpack("<I4", data, at)
  for index = 1, count do
    local key, item = index
    if kind == "M" then
      key, at = take(data, at)
    end
    item, at = take(data, at)
    result[key] = item
  end
  return result, at
end

function take(data, at)
  local kind = data:sub(at, at)
  at = at + 1
  if kind == "N" then
    return nil, at
  elseif kind == "T" then
    return true, at
  elseif kind == "F" then
    return false, at
  elseif kind == "S" then
    return unpack("<s4", data, at)
  elseif kind == "I" then
    return unpack("<i8", data, at)
  elseif kind == "D" then
    return unpack("<d", data, at)
  end
  return take_table(data, at, kind)
end

local function decode(data)
  local count, at = unpack("<I4", data)
  local values = { n = count }
  for index = 1, count do
    values[index], at = take(data, at)
  end
  return values
end

-- interrupting --------------------------------------------------------------------------------------------------------

-- The interpreter itself turns one SIGINT into an error, at no cost, and the next kills it. So after the first, and for
-- what is typed, a hook looks for a file, which makes what is run half as fast.
local wish
local look

local function has_wish()
  local file = wish and open(wish, "rb")
  if file then
    file:close()
    remove(wish)
    return true
  end
  return false
end

local function prepare_watch(path)
  if wish then
    return
  end
  wish = path
  function look()
    if has_wish() then
      error(INTERRUPTED, 0)
    end
  end
  local create, resume, close = coroutine.create, coroutine.resume, coroutine.close
  coroutine.create = function(body)
    local thread = create(body)
    hook(thread, look, "", STEPS)
    return thread
  end
  coroutine.wrap = function(body)
    local thread = coroutine.create(body)
    local function pass(ok, ...)
      if ok then
        return ...
      end
      close(thread)
      error(..., 0)
    end
    return function(...)
      return pass(resume(thread, ...))
    end
  end
end

-- From now on a signal hits what was asked for: before, it would have hit what reads the request.
local function tell_begun()
  answers:write(BEGUN)
  answers:flush()
end

-- Calls `chunk` with a traceback for its errors; the driver itself is never what a hook interrupts.
local function call(chunk, ...)
  if look then
    hook(look, "", STEPS)
  else
    tell_begun()
  end
  return chunk(...)
end

local function protect(chunk, on_error, ...)
  local result = table.pack(xpcall(call, on_error, chunk, ...))
  if look then
    hook()
  end
  return table.unpack(result, 1, result.n)
end

-- running -------------------------------------------------------------------------------------------------------------

local function compile(code, name)
  local chunk = load("return " .. code, name, "t")
  if chunk then
    return chunk
  end
  return load(code, name, "t")
end

local function describe(problem)
  if type(problem) == "table" and getmetatable(problem) and getmetatable(problem).__tostring then
    return tostring(problem)
  end
  return type(problem) == "string" and problem or "(an error of type " .. type(problem) .. ")"
end

local function on_error(problem)
  return { problem = problem, trace = traceback(describe(problem), 2) }
end

local answered = 0

local function answer(kind, body)
  answers:write(pack("<c1s4", kind, body))
  answered = answered + 1
  answers:flush()
  pcall(terminal_out.write, terminal_out, "\27_", token, answered, "\27\\")
  pcall(terminal_out.flush, terminal_out)
end

local function answer_error(problem, trace)
  local text = describe(problem)
  if text:sub(-#INTERRUPTED) == INTERRUPTED then
    return answer("i", encode({ n = 0 }))
  end
  local ok, body = pcall(encode, { n = 3, text, trace, type(problem) ~= "string" and problem or nil })
  answer("e", ok and body or encode({ n = 2, text, trace }))
end

local function execute(body)
  local request = decode(body)
  local name, code, path = request[1], request[2], request[3]
  if path then
    prepare_watch(path)
  end
  local chunk, problem = compile(code, name)
  if not chunk then
    return answer_error(problem, problem)
  end
  local returned = table.pack(protect(chunk, on_error, table.unpack(request, 4, request.n)))
  local ok, result = returned[1], returned[2]
  if not ok then
    if type(result) == "table" then
      return answer_error(result.problem, result.trace)
    end
    return answer_error(result, describe(result)) -- the handler itself had no room left
  end
  local encoded, values = pcall(encode, { n = returned.n - 1, table.unpack(returned, 2, returned.n) })
  if not encoded then
    return answer_error(values, describe(values))
  end
  answer("v", values)
end

-- the terminal --------------------------------------------------------------------------------------------------------

local function show(ok, ...)
  if not ok then
    io.stderr:write((...).trace or describe(...), "\n")
  elseif select("#", ...) > 0 then
    print(...)
  end
end

-- Reads and runs what is typed, as `lua -i` does, until Ctrl-D.
local function talk(path)
  local typed
  prepare_watch(path)
  while true do
    terminal_out:write(typed and ">> " or "> ")
    terminal_out:flush()
    local line = terminal_in:read("L")
    if not line then
      terminal_out:write("\n")
      return
    end
    if has_wish() then -- Ctrl-C at the prompt
      typed = nil
    end
    typed = (typed or "") .. line
    local chunk, problem = compile(typed, "=stdin")
    if chunk then
      typed = nil
      show(protect(chunk, on_error))
    elseif problem:sub(-5) ~= "<eof>" then
      typed = nil
      io.stderr:write(problem, "\n")
    end
  end
end

-- requests ------------------------------------------------------------------------------------------------------------

local idle -- set by net.lua, which listens to others meanwhile

local function serve()
  if idle then
    idle()
  end
  local header = requests:read(5)
  if not header then
    os.exit(0)
  end
  local kind, length = unpack("<c1I4", header)
  if kind == "p" then -- all header: see below
    return answer("p", encode({ n = 1, length }))
  end
  local body = length > 0 and requests:read(length) or ""
  if kind == "x" then
    execute(body)
  elseif kind == "t" then
    local ok, problem = pcall(talk, decode(body)[1])
    answer(ok and "v" or "e", encode(ok and { n = 0 } or { n = 2, describe(problem), describe(problem) }))
  elseif kind == "n" then
    local request = decode(body)
    local ok, problem = pcall(function()
      tell_begun()
      idle = assert(loadfile(request[1]))(encode, decode, request_descriptor, request[2])
    end)
    answer(ok and "v" or "e", encode(ok and { n = 0 } or { n = 2, describe(problem), describe(problem) }))
  end
end

while true do
  -- A SIGINT that comes too late for what it was meant for is an error here. Whoever sent it then asks with a frame that
  -- is all header, so that nothing is lost when the error comes as it was read.
  local ok = pcall(serve)
  if not ok then
    answer("i", encode({ n = 0 }))
  end
end
