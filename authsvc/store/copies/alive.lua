-- Note that a session is alive, unless its tombstone stands.
-- KEYS[1] the session's key
-- ARGV[1] life of the key in milliseconds, never shortened
if redis.call('GET', KEYS[1]) == 'ended' then
  return 0
end
redis.call('SET', KEYS[1], 'alive', 'PX', math.max(tonumber(ARGV[1]), redis.call('PTTL', KEYS[1])))
return 1
