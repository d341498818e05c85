"""A film's packets -> the frames and the sound of clips, each at its time.

clock        one clock for all packets of a file, which runs forward
packets      the packets of a stream on that clock
order        which of a picture's two timestamps is right
upright      pictures as players show them: turned, mirrored, with square pixels
declared     when a stream ends, as headers and tables say
streams      one stream of a film: frames, their times, damage
measured     a file's streams, their lengths, its pictures' shape
missing      what a clip lacks of a stream though it was promised
pictures     the frames of clips, on uniform grids
pieces       where pieces of sound stand
sounds       the sound of clips
media        a file's clips: frames and sound on the clip's own clock
usable       which of them there is something to learn from
"""
