"""Define the scripts that run inside the server, each as one atomic step.

A server that restarts forgets its scripts, even if it keeps its data, and a replica that is promoted gets a new
replication id. Either makes the next call fail before anything is read or written, and the first caller that fails
runs ATTACH. Such a server may have lost the end of its log, so ATTACH begins a new incarnation, and jumps ahead
so that no revision is ever used twice. A demoted primary answers no call, since it may be behind.

A server that evicts keys may lose a whole table. `meta` names the tables that are there, so the next call notices one
that is missing, and ATTACH begins a new incarnation without the other tables, whose facts refer to those that are
gone. Contexts refer to nothing, and stay if they are there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Script:
    """Holds Lua source and the digest by which a server remembers it."""

    source: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest())


REVISION_JUMP = 2**20
"""A number of revisions greater than any server can have lost."""

_HISTORY = """
local info = redis.call('INFO', 'replication')
local history = string.match(info, 'master_replid:(%w+)')
"""

_GUARD = (
    _HISTORY
    + """
if not string.find(info, 'role:master', 1, true) then
  return redis.error_reply('READONLY this server is a replica by now')
end
local at = redis.call('HMGET', KEYS[1], 'incarnation', 'head', 'history', 'tables')
if at[1] and at[3] ~= history then
  return redis.error_reply('NOSCRIPT this server has become the primary since')
end
for table in string.gmatch(at[4] or '', '%S+') do
  if redis.call('EXISTS', table) == 0 then
    return redis.error_reply('NOSCRIPT this server has lost a table')
  end
end
"""
)
"""The beginning of each script that reads or writes: `at` holds incarnation and head."""

_LIST_TABLES = """
local tables = {}
for i = 3, #KEYS do
  if not string.find(KEYS[i], ':lease:', 1, true) and redis.call('EXISTS', KEYS[i]) == 1 then
    tables[#tables + 1] = KEYS[i]
  end
end
redis.call('HSET', KEYS[1], 'tables', table.concat(tables, ' '))
"""
"""The end of each script that writes: the names of the tables that are there."""

ATTACH = (
    _HISTORY
    + """
-- KEYS: meta, log, tables....  ARGV: new incarnation, jump, the table of contexts.
local known = redis.call('HMGET', KEYS[1], 'head', 'tables')
local lost = not known[1]
for table in string.gmatch(known[2] or '', '%S+') do
  lost = lost or redis.call('EXISTS', table) == 0
end
for i = 3, #KEYS do
  if lost and (KEYS[i] ~= ARGV[3] or not known[1]) then
    redis.call('DEL', KEYS[i])
  end
end
if known[1] then
  redis.call('HINCRBY', KEYS[1], 'head', ARGV[2])
else
  redis.call('HSET', KEYS[1], 'head', 0)
end
redis.call('HSET', KEYS[1], 'incarnation', ARGV[1], 'history', history)
redis.call('DEL', KEYS[2])
"""
    + _LIST_TABLES
)

POLICY = """
-- KEYS: meta. Returns how the server makes room once its memory is full.
return string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:([%w-]+)') or ''
"""
EVICTING = "allkeys"
"""The beginning of the names of policies that evict keys without a TTL."""

APPEND = Script(
    _GUARD
    + """
-- KEYS: meta, log, tables..., leases....  ARGV: incarnation, expected head, history, number of events, events...,
-- then changes, each a letter with its arguments. Compare and set: returns 1, or 0 if another writer was faster.
if at[1] ~= ARGV[1] or at[2] ~= ARGV[2] then
  return 0
end
local count = tonumber(ARGV[4])
for i = 1, count do
  local id = string.format('%.0f-0', tonumber(ARGV[2]) + i)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], id, 'event', ARGV[4 + i])
end
redis.call('HINCRBY', KEYS[1], 'head', count)
local next = 5 + count
while next <= #ARGV do
  local what, key = ARGV[next], KEYS[tonumber(ARGV[next + 1])]
  if what == 'put' then
    redis.call('HSET', key, ARGV[next + 2], ARGV[next + 3])
    next = next + 4
  elseif what == 'drop' then
    redis.call('HDEL', key, ARGV[next + 2])
    next = next + 3
  elseif what == 'begin' then
    redis.call('SET', key, '1', 'PX', ARGV[next + 2])
    next = next + 3
  else
    redis.call('DEL', key)
    next = next + 2
  end
end
"""
    + _LIST_TABLES
    + "return 1"
)

READ = Script(
    _GUARD
    + """
-- KEYS: meta, log, tables....  ARGV: revision, count.
-- Returns incarnation, head, and at most count events after the revision.
if at[2] == ARGV[1] then
  return {at[1], at[2], {}}
end
return {at[1], at[2], redis.call('XRANGE', KEYS[2], '(' .. ARGV[1] .. '-0', '+', 'COUNT', ARGV[2])}
"""
)

LOAD = Script(
    _GUARD
    + """
-- KEYS: meta, log, tables.... Returns incarnation, head, and each table's fields and values.
local reply = {at[1], at[2]}
for i = 3, #KEYS do
  reply[i] = redis.call('HVALS', KEYS[i])
end
return reply
"""
)

LAPSED = Script("""
-- KEYS: leases. Returns the positions, from 1, of those that have lapsed.
local lapsed = {}
for i = 1, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then
    lapsed[#lapsed + 1] = i
  end
end
return lapsed
""")

REMEMBERED = (APPEND, READ, LOAD, LAPSED)
