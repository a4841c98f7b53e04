"""A session as configured."""

from __future__ import annotations

from k2.clock import Clock
from k2.setting_feeds import Feed
from k2.sources.connector import AiohttpConnector
from k2.sources.contract import Exchange, prefix_of
from k2.sources.link import LinkLimits
from k2.sources.plan import SessionSpec
from k2.sources.session import Session, SessionConfig


def new_session(
    exchange: Exchange, spec: SessionSpec, settings: Feed, clock: Clock, *, max_frame_bytes: int
) -> Session:
    """The session of `spec`, not yet running. Raises `ConfigError` for a CA file of no use.

    `max_frame_bytes`: what the taker can hold; the setting may be lower.
    """
    return Session(
        exchange.protocol(spec, settings),
        _config(settings, max_frame_bytes),
        AiohttpConnector(
            ssl_verify=settings.ssl_verify,
            ca_bundle=settings.custom_ca_bundle,
            prefix=prefix_of(settings),
        ),
        name=spec.key,
        clock=clock,
    )


def _config(settings: Feed, max_frame_bytes: int) -> SessionConfig:
    return SessionConfig(
        urls=(settings.url, *settings.failover_urls),
        reconnect_initial_s=settings.reconnect_initial_s,
        reconnect_max_s=settings.reconnect_max_s,
        max_lifetime_s=settings.max_lifetime_h * 3_600,
        queue_frames=settings.queue_frames,
        limits=LinkLimits(
            ping_interval_s=settings.ping_interval_s,
            ping_timeout_s=settings.ping_timeout_s,
            stale_after_s=settings.stale_after_s,
            subscribe_per_s=settings.subscribe_per_s,
            # A record is hardly larger than its frame: a frame that no batch of the log can hold is
            # refused at the socket.
            max_frame_bytes=min(settings.max_frame_bytes, max_frame_bytes),
        ),
    )
