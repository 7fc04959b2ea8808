"""`wm-gym play`: a page on which a dream is played, beside the real environment if wanted.

From the inside out: `controls` (keys to actions), `world` (one environment and its episode), `session` (what one player
does; plain Python), `protocol` (the messages), `connection` (the paced loop between a session and a browser), `guard`
(who may connect), `server` (the application) and `command` (the command line). Extra `web`.
"""
