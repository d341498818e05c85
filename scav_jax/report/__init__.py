"""What an evaluation shows, `report.html`, and what a search found.

figures    plots and thumbnails
markup     the HTML pieces
page       report.html from results and pictures
pictures   what is shown of one run: matrices, an alignment, searches
playable   a stretch of a file as something that browsers play
match      how well two clips match, step by step
in_sync    clips that play in sync, with curves below them
search_page  what a search found: query and results, and their match over time
"""
