"Web servers on this machine: files, and live streams."
import http.server
import threading
import time
from contextlib import contextmanager, suppress
from itertools import count

import numpy as np


@contextmanager
def serve(handler):
    "Yields the address of a server"
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try: yield f'http://127.0.0.1:{server.server_port}'
        finally: server.shutdown()


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def live(frames=None, rate=25, stall=0):
    "Handler that encodes MPEG-TS while it is read: each frame is a shade of its number"
    import av
    class Live(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args): pass

        def do_GET(self):
            self.send_response(200)
            self.send_header('Connection', 'close')
            self.end_headers()
            with suppress(OSError), av.open(self.wfile, 'w', format='mpegts') as video:
                stream = video.add_stream('mpeg2video', rate=rate)
                stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
                for n in range(frames) if frames else count():
                    picture = np.full((48, 64, 3), n % 256, np.uint8)
                    video.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
                    time.sleep(1/rate)
                video.mux(stream.encode())
                time.sleep(stall)
    return Live
