-- Raise a user's epoch; it never falls.
-- KEYS[1] the epoch's key
-- ARGV[1] epoch (integer)   ARGV[2] life of the key in milliseconds, never shortened
local current = tonumber(redis.call('GET', KEYS[1]) or '-1')
local life = math.max(tonumber(ARGV[2]), redis.call('PTTL', KEYS[1]))
redis.call('SET', KEYS[1], string.format('%.0f', math.max(current or -1, tonumber(ARGV[1]))), 'PX', life)
return 1
