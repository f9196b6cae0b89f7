-- Take an attempt's result over into its session (exactly-once, step 8). Running it again changes nothing.
-- KEYS: session. ARGV: now, attempt, 'linked' | 'unknown' | 'open', link, digest, choice, unknown attempts, ms to keep, channel, topic.
-- Returns {state, link}.
local session, result = KEYS[1], ARGV[3]
local state = redis.call('HGET', session, 'state')
if not state then return {'missing', ''} end
redis.call('HDEL', session, 'intent:' .. ARGV[2])
if result == 'linked' and state ~= 'linked' then
  redis.call('HSET', session, 'state', 'linked', 'digest', ARGV[5], 'choice', ARGV[6], 'link', ARGV[4], 'ended', ARGV[1])
  redis.call('HDEL', session, 'unclear')
  redis.call('PEXPIRE', session, ARGV[8])
elseif result == 'unknown' and state ~= 'linked' and state ~= 'closed' then
  redis.call('HSET', session, 'state', 'unknown', 'digest', ARGV[5], 'choice', ARGV[6], 'unclear', ARGV[7])
end
redis.call('PUBLISH', ARGV[9], ARGV[10])
return {redis.call('HGET', session, 'state'), redis.call('HGET', session, 'link') or ''}
