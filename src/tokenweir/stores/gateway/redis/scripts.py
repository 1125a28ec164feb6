"""The Lua that counts. Each script runs alone in the server, so a batch of reservations is decided exactly.

Keys, all with one hash tag, as one script touches a key, a user and a team: on Redis Cluster they lie in one slot.

``…epoch``      what the counters are worth: number of the epoch and run of the server, as ``7:4f0c…``
``…building``   the token of whoever counts anew
``…r<id>``      a reservation: ``{at, key, user, team, model, requests, tokens, cost, kind, blob}``, settled: ``{at}``
``…open``       ids of open reservations by the end of their lease
``…c<scope><window><start>:<subject>``  use: a hash from unit and model to the amount

Instants are µs here, for a Lua number holds 53 bits. Messages are MessagePack.
"""

from __future__ import annotations

from typing import Final

_SHARED: Final = """
local E = KEYS[1]
local P = string.sub(E, 1, -6)
local clock = redis.call('TIME')
local secs = tonumber(clock[1])
local now = secs * 1000000 + tonumber(clock[2])
local UNITS = {'r', 't', 'c'}

local function month(s)
  local day = math.floor(s / 86400)
  local z = day + 719468
  local doe = z % 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  return (day - (doy - math.floor((153 * mp + 2) / 5))) * 86400
end
local MONTH = month(secs)
local function starts(window, s)
  if window == 1 then return s - s % 60 end
  if window == 2 then return s - s % 86400 end
  if s >= MONTH and s <= secs then return MONTH end
  return month(s)
end
local function ends(window, from)
  if window == 1 then return from + 60 end
  if window == 2 then return from + 86400 end
  return month(from + 32 * 86400)
end
local function place(scope, window, from, subject)
  return P .. 'c' .. scope .. window .. from .. ':' .. subject
end

local held, added, until_at = {}, {}, {}
local function used(key, field)
  local fields = held[key]
  if not fields then fields = {}; held[key] = fields end
  local value = fields[field]
  if not value then
    value = tonumber(redis.call('HGET', key, field) or '0')
    fields[field] = value
  end
  local more = added[key]
  return value + (more and more[field] or 0)
end
local function add(key, field, amount, window_end)
  if amount == 0 then return end
  local fields = added[key]
  if not fields then fields = {}; added[key] = fields; until_at[key] = window_end end
  fields[field] = (fields[field] or 0) + amount
end
local function write()
  for key, fields in pairs(added) do
    for field, amount in pairs(fields) do
      if amount ~= 0 then redis.call('HINCRBY', key, field, amount) end
    end
    redis.call('EXPIREAT', key, until_at[key] + 3600)
  end
end
-- What happened in a window that has ended is not counted any more.
local function count(subjects, model, at, amounts, only)
  local s = math.floor(at / 1000000)
  for window = 1, 3 do
    local from = starts(window, s)
    local to = ends(window, from)
    if to > secs and (not only or only == window) then
      for scope = 1, 3 do
        if subjects[scope] ~= '' then
          local key = place(scope, window, from, subjects[scope])
          for unit = 1, 3 do
            add(key, UNITS[unit], amounts[unit], to)
            if model ~= '' then add(key, UNITS[unit] .. model, amounts[unit], to) end
          end
        end
      end
    end
  end
end
local function limited(limit)
  return used(place(limit[1], limit[4], starts(limit[4], secs), limit[2]), UNITS[limit[3]] .. limit[5])
end
"""
_UNDER_EPOCH: Final = """
if redis.call('GET', E) ~= ARGV[1] then return redis.error_reply('NOEPOCH the counters are not those that were') end
"""
_BUILDING: Final = """
if redis.call('GET', P .. 'building') ~= ARGV[1] then return redis.error_reply('NOEPOCH another counts anew') end
"""

_RESERVE: Final = """
local out = {now}
for i, q in ipairs(cmsgpack.unpack(ARGV[2])) do
  local key = P .. 'r' .. q[1]
  local standing = redis.call('GET', key)
  local short, at = 0, now
  if standing then
    at = cmsgpack.unpack(standing)[1]
  else
    for j, limit in ipairs(q[12]) do
      if limited(limit) + q[5 + limit[3]] > limit[6] then short = j; break end
    end
    if short == 0 then
      redis.call('SET', key, cmsgpack.pack({now, q[2], q[3], q[4], q[5], q[6], q[7], q[8], q[10], q[11]}))
      redis.call('ZADD', P .. 'open', now + q[9], q[1])
      count({q[2], q[3], q[4]}, q[5], now, {q[6], q[7], q[8]})
    end
  end
  local answer = {short, at}
  for j, limit in ipairs(q[12]) do answer[j + 2] = limited(limit) end
  out[i + 1] = answer
end
write()
return cmsgpack.pack(out)
"""
_SETTLE: Final = """
local out = {}
for i, q in ipairs(cmsgpack.unpack(ARGV[2])) do
  local key = P .. 'r' .. q[1]
  local standing = redis.call('GET', key)
  local r = standing and cmsgpack.unpack(standing)
  out[i] = 0
  if r and #r > 1 then
    count({r[2], r[3], r[4]}, r[5], r[1], {q[2] - r[6], q[3] - r[7], q[4] - r[8]})
    redis.call('SET', key, cmsgpack.pack({r[1]}), 'EX', ARGV[3])
    redis.call('ZREM', P .. 'open', q[1])
    out[i] = 1
  end
end
write()
return out
"""
_RENEW: Final = """
for _, id in ipairs(cmsgpack.unpack(ARGV[2])) do redis.call('ZADD', P .. 'open', 'XX', now + ARGV[3], id) end
return 1
"""
_LIST: Final = """
local out = {}
for i, id in ipairs(ids) do
  local standing = redis.call('GET', P .. 'r' .. id)
  local r = standing and cmsgpack.unpack(standing)
  if r and #r > 1 then
    out[#out + 1] = {id, tonumber(redis.call('ZSCORE', P .. 'open', id)), r[1], r[9], r[10]}
  else
    redis.call('ZREM', P .. 'open', id)
  end
end
return out
"""
_EXPIRED: Final = (
    "local ids = redis.call('ZRANGEBYSCORE', P .. 'open', '-inf', now, 'LIMIT', 0, ARGV[2])\n" + _LIST
)
_OPEN: Final = "local ids = redis.call('ZRANGE', P .. 'open', ARGV[2], ARGV[3])\n" + _LIST
_USE: Final = """
local out = {now}
for j, limit in ipairs(cmsgpack.unpack(ARGV[2])) do out[j + 1] = limited(limit) end
return cmsgpack.pack(out)
"""
_RESTORE: Final = """
local restored = 0
for _, q in ipairs(cmsgpack.unpack(ARGV[2])) do
  local key = P .. 'r' .. q[1]
  if redis.call('EXISTS', key) == 0 then
    redis.call('SET', key, cmsgpack.pack({q[11], q[2], q[3], q[4], q[5], q[6], q[7], q[8], q[9], q[10]}))
    redis.call('ZADD', P .. 'open', q[12], q[1])
    count({q[2], q[3], q[4]}, q[5], q[11], {q[6], q[7], q[8]})
    restored = restored + 1
  end
end
write()
return restored
"""
_COUNT: Final = """
for _, q in ipairs(cmsgpack.unpack(ARGV[2])) do
  for window = 1, 3 do count({q[1], q[2], q[3]}, q[4], tonumber(ARGV[3]), q[4 + window], window) end
end
write()
return 1
"""
_REMEMBER: Final = """
for _, q in ipairs(cmsgpack.unpack(ARGV[2])) do
  redis.call('SET', P .. 'r' .. q[1], cmsgpack.pack({q[2]}), 'EX', ARGV[3])
end
return 1
"""
_FINISH: Final = """
redis.call('SET', E, ARGV[2])
redis.call('DEL', P .. 'building')
return 1
"""

GUARDED: Final = {
    name: _SHARED + _UNDER_EPOCH + body
    for name, body in {
        "reserve": _RESERVE,
        "settle": _SETTLE,
        "renew": _RENEW,
        "expired": _EXPIRED,
        "open": _OPEN,
        "use": _USE,
        "restore": _RESTORE,
    }.items()
}
"""Scripts that run under the epoch that ``ARGV[1]`` names, or fail."""

BUILDING: Final = {
    name: _SHARED + _BUILDING + body
    for name, body in {
        "survivors": _OPEN,
        "count": _COUNT,
        "install": _RESTORE,
        "remember": _REMEMBER,
        "finish": _FINISH,
    }.items()
}
"""Scripts of a rebuild, which run while ``ARGV[1]`` is the token of whoever counts anew."""
