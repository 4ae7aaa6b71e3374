-- Count an attempt, unless the window is full.  Time is the server's, in microseconds; a window is (now - w, now].
-- KEYS[1] sorted set: receipts by the time they were counted
-- ARGV[1] quota   ARGV[2] window in milliseconds   ARGV[3] receipt
-- Returns {1 if counted else 0, attempts left, microseconds until the oldest attempt that matters leaves}.
local quota, window_us = tonumber(ARGV[1]), tonumber(ARGV[2]) * 1000
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
-- Changes nothing, but is refused when memory is full; after a removal Redis would let every write through.
redis.call('ZADD', KEYS[1], 'XX', 0, ARGV[3])
-- %.0f: Lua itself would write 14 digits of the 16.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - window_us))
local count = redis.call('ZCARD', KEYS[1])
local counted = count < quota
if counted then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  count = count + 1
end
-- Refused: the attempt whose leaving makes room; more than the quota are there after it was lowered.
local rank = counted and 0 or count - quota
local oldest = redis.call('ZRANGE', KEYS[1], rank, rank, 'WITHSCORES')
local reset = oldest[2] and tonumber(oldest[2]) + window_us - now or window_us
return {counted and 1 or 0, math.max(quota - count, 0), reset}
