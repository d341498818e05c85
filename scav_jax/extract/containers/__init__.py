"""What lies in a file before anything is decoded.

nested       boxes in boxes (MP4), elements in elements (Matroska)
opening      a file opened, and whose fault it is where that fails
whole        files of which only a part would be read
lengths      how long a header says that a file is
transport    which programmes a transport stream has, from its first to its last table
packs        whether other streams follow those of a program stream
losses       where bytes are missing or damaged
cropping     what a container says is to be cut off its pictures
film         which streams of a file are the film, and where its second 0 lies
"""
