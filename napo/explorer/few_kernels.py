"""The kernels behind the explorer's pages, for Voila: a few at most, and each ends soon after its page is closed."""

import asyncio

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.ioloop import IOLoop
from tornado.web import HTTPError

MOST = 4  # about 400 MB each
GRACE = 10  # seconds without a connection, after which a closed page's kernel ends
UNSEEN = 120  # seconds after which a kernel ends whose page has never connected


class FewKernels(AsyncMappingKernelManager):
    """Voila's kernel manager with a limit."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.cull_idle_timeout, self.cull_interval = UNSEEN, 15
        self.one_at_a_time = asyncio.Lock()

    async def start_kernel(self, **settings):
        """Start a page's kernel. Status 503 for a visitor beyond MOST."""
        async with self.one_at_a_time:
            if len(self) >= MOST:
                raise HTTPError(503, reason=f"{MOST} pages show the explorer already. Close one, then reload this page")
            return await super().start_kernel(**settings)

    def notify_disconnect(self, kernel_id):
        """A page's connection has ended: end its kernel too, unless it connects again."""
        super().notify_disconnect(kernel_id)
        IOLoop.current().call_later(GRACE, self._end_unseen, kernel_id)

    async def _end_unseen(self, kernel_id):
        if kernel_id in self and not self._kernel_connections.get(kernel_id):
            await self.shutdown_kernel(kernel_id)
