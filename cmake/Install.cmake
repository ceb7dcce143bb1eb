# The installed parts are added at the end of this file list.
