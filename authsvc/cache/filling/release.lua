-- Give up a lease that is still one's own.
-- KEYS[1] the lease             ARGV[1] its token
-- Returns 1 if it was, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
return 1
