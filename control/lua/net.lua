-- What a networked interpreter of control.lua has beside others: the table `net`, and an ear while nothing is executed.
--
-- Whoever connects says the secret first; then messages go both ways, each a string with its length (u32) that holds
-- what `encode` makes of its kind, its number and its value. A message is handled by `net.handler`, and what that
-- returns goes back as the answer.

local encode, decode, request_descriptor, secret = ...
local socket = require("socket")
local pack, unpack = string.pack, string.unpack
local MESSAGE_MAX = 16 * 1024 * 1024
local PEERS_MAX = 1000
local GREETING_WAIT_S = 5

net = { inbox = {}, INBOX_MAX = 1000 }

local listener
local peers = {} -- by number
local by_socket = {}
local numbers = 0
local asked = 0
local answers = {}

-- a stand-in for the pipe of requests, as socket.select wants one
local requests = {
  getfd = function()
    return request_descriptor
  end,
  dirty = function()
    return false
  end,
}

local function forget(peer)
  peers[peer.number] = nil
  by_socket[peer.socket] = nil
  peer.socket:close()
  peer.is_gone = true
end

local function add(connection, is_greeted)
  numbers = numbers + 1
  connection:settimeout(0)
  connection:setoption("tcp-nodelay", true)
  local peer = { number = numbers, socket = connection, got = "", is_greeted = is_greeted, since = socket.gettime() }
  peers[numbers] = peer
  by_socket[connection] = peer
  return peer
end

local function write(peer, data)
  local from, deadline = 1, socket.gettime() + 30
  while from <= #data do
    local last, problem, part = peer.socket:send(data, from)
    from = (last or part) + 1
    if not last and (problem ~= "timeout" or socket.gettime() > deadline) then
      forget(peer)
      error("networking: peer " .. peer.number .. " is gone: " .. problem, 0)
    end
    if not last then
      socket.select(nil, { peer.socket }, 1)
    end
  end
end

local function post(peer, kind, number, value)
  local body = encode({ n = 3, kind, number, value })
  if #body > MESSAGE_MAX then
    error("networking: a message of " .. #body .. " bytes is too long", 0)
  end
  write(peer, pack("<s4", body))
end

local function handle(peer, body)
  local kind, number, value = table.unpack(decode(body), 1, 3)
  if kind == "answer" or kind == "failure" then
    answers[number] = { is_answer = kind == "answer", value = value }
    return
  end
  if net.handler then
    local ok, answer = pcall(net.handler, value, peer.number)
    if kind == "question" then
      post(peer, ok and "answer" or "failure", number, ok and answer or tostring(answer))
    elseif not ok then
      io.stderr:write("the handler of a message failed: ", tostring(answer), "\n")
    end
    return
  end
  if #net.inbox >= net.INBOX_MAX then
    table.remove(net.inbox, 1)
  end
  table.insert(net.inbox, value)
  if kind == "question" then
    post(peer, "failure", number, "nobody handles messages there")
  end
end

local function read(peer)
  local data, problem, part = peer.socket:receive(65536)
  peer.got = peer.got .. (data or part or "")
  while #peer.got >= 4 do
    local length = unpack("<I4", peer.got)
    if length > MESSAGE_MAX or (not peer.is_greeted and length ~= #secret) then
      forget(peer)
      return
    end
    if #peer.got < 4 + length then
      break
    end
    local body = peer.got:sub(5, 4 + length)
    peer.got = peer.got:sub(5 + length)
    if peer.is_greeted then
      if not pcall(handle, peer, body) and peer.is_gone then
        return
      end
    elseif body == secret then
      peer.is_greeted = true
    else
      forget(peer)
      return
    end
  end
  if problem == "closed" then
    forget(peer)
  end
end

local function drop_the_silent()
  local now = socket.gettime()
  for _, peer in pairs(peers) do
    if not peer.is_greeted and now - peer.since > GREETING_WAIT_S then
      forget(peer)
    end
  end
end

-- Waits until something can be read, and deals with it; true when that is a request.
local function turn(seconds, heeds_requests)
  local sockets = {}
  for connection in pairs(by_socket) do
    sockets[#sockets + 1] = connection
  end
  if listener and #sockets < PEERS_MAX then
    sockets[#sockets + 1] = listener
  end
  if heeds_requests then
    sockets[#sockets + 1] = requests
  end
  local has_request = false
  for _, ready in ipairs((socket.select(sockets, nil, seconds))) do
    if ready == requests then
      has_request = true
    elseif ready == listener then
      local connection = listener:accept()
      if connection then
        add(connection, false)
      end
    elseif by_socket[ready] then
      read(by_socket[ready])
    end
  end
  drop_the_silent()
  return has_request
end

local function find(number)
  if number == nil then
    local first = next(peers)
    number = first
  end
  local peer = peers[number]
  if not peer then
    error("networking: there is no peer " .. tostring(number or "at all"), 0)
  end
  return peer
end

-- Listens at 127.0.0.1, at any port for 0; returns the port.
function net.listen(port)
  if listener then
    error("networking: it listens already", 0)
  end
  local problem
  listener, problem = socket.bind("127.0.0.1", port or 0, 64)
  if not listener then
    error("networking: port " .. tostring(port) .. " cannot be had: " .. problem, 0)
  end
  listener:settimeout(0)
  return tonumber((select(2, listener:getsockname())))
end

-- Connects to one that listens; returns the number of the peer.
function net.connect(host, port, seconds)
  local connection = socket.tcp()
  connection:settimeout(seconds or 10)
  local ok, problem = connection:connect(host, port)
  if not ok then
    connection:close()
    error("networking: " .. host .. ":" .. tostring(port) .. " cannot be reached: " .. problem, 0)
  end
  local peer = add(connection, true)
  write(peer, pack("<s4", secret))
  return peer.number
end

-- Sends a message to a peer (the first when none is named), and waits for nothing.
function net.send(value, number)
  post(find(number), "message", 0, value)
end

-- Sends a question and returns the answer of the other's handler.
function net.call(value, number, seconds)
  local peer = find(number)
  asked = asked + 1
  local mine, deadline = asked, socket.gettime() + (seconds or 10)
  post(peer, "question", mine, value)
  while not answers[mine] do
    if peer.is_gone then
      error("networking: peer " .. peer.number .. " is gone", 0)
    end
    local left = deadline - socket.gettime()
    if left <= 0 then
      error("networking: no answer came in time", 0)
    end
    turn(left, false)
  end
  local answer = answers[mine]
  answers[mine] = nil
  if not answer.is_answer then
    error("networking: the other side failed: " .. tostring(answer.value), 0)
  end
  return answer.value
end

-- Sends a message to all; returns how many there are.
function net.broadcast(value)
  local count = 0
  for number in pairs(net.peers()) do
    net.send(value, number)
    count = count + 1
  end
  return count
end

-- Deals with what comes for so many seconds, or, without a number, with what is there.
function net.listen_for(seconds)
  local deadline = socket.gettime() + (seconds or 0)
  repeat
    turn(math.max(0, deadline - socket.gettime()), false)
  until socket.gettime() >= deadline
end

-- The numbers of those who are connected, and where each is.
function net.peers()
  local found = {}
  for number, peer in pairs(peers) do
    if peer.is_greeted then
      local host, port = peer.socket:getpeername()
      found[number] = tostring(host) .. ":" .. tostring(port)
    end
  end
  return found
end

return function()
  while not turn(nil, true) do
  end
end
