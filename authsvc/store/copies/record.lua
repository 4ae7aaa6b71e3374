-- Put back the record of a token that SQL vouches for, unless one is there that is bound to the token's text.
-- KEYS[1] the record's key
-- ARGV[1] the record, JSON   ARGV[2] its life in seconds   ARGV[3] how a bound record begins
-- Returns 1 if put back, else 0.
local current = redis.call('GET', KEYS[1])
if current and string.sub(current, 1, #ARGV[3]) == ARGV[3] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
