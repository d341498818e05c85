"""What is in a data set or in a folder of videos, and what is wrong with it.

findings   one clip's facts; the document of all: counts, lengths, faults, duplicates, leaks
features   the clips of a data set, read
videos     the clips of a folder, decoded
page       the document as text for a terminal and as one HTML page
doctor     what this machine has for the project, and what is wrong with it

`scav inspect DATA`, `scav inspect --videos DIR`, `scav doctor`.
"""
