-- Run one command on a key and give the key a life if it has none, in one step.
-- KEYS[1] the key
-- ARGV[1] its life in milliseconds   ARGV[2] the command   ARGV[3..] the rest of its arguments
-- Returns the command's reply.
local reply = redis.call(ARGV[2], KEYS[1], unpack(ARGV, 3))
if redis.call('PTTL', KEYS[1]) == -1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
end
return reply
