"""A local web page: drop a sound or a video, play what is found. `scav web`

library    which clips may be played, and where they lie while they are
uploads    a file that somebody sent: its size, whether it is media, its end
delivery   a clip as HTTP gives it out, whole or a stretch of it
progress   how far a search is
searcher   one search, from what asks to what is shown
app        the HTTP interface
page       what the browser shows
"""
