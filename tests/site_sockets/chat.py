# chat/consumers.py
import datetime

from asgiref.sync import sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from django.contrib.auth import get_user_model

from delivery import LargeMessageMixin, adeliver
from delivery.models import Payload


class Chat(LargeMessageMixin, AsyncJsonWebsocketConsumer):
    """One room: its members hear what each of them says, however long it is."""

    async def connect(self):
        self.room = self.scope["url_route"]["kwargs"]["room"]
        if not self.scope["user"].is_authenticated:
            await self.close()
            return
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        await self.channel_layer.group_discard(self.room, self.channel_name)

    async def receive_json(self, content, **kwargs):
        """Somebody says something short."""
        await self.channel_layer.group_send(self.room, {"type": "said", "content": content})

    async def receive_large(self, payload):
        """Somebody says something long: every member gets a delivery, every socket the pointer to it."""
        members = get_user_model().objects.filter(groups__name=self.room)
        message = await adeliver(payload, to=members, expires=datetime.timedelta(days=1))
        await sync_to_async(payload.discard)()
        await self.channel_layer.group_send(self.room, {"type": "said_at_length", "payload": str(message.pk)})

    async def said(self, event):
        await self.send_json(event["content"])

    async def said_at_length(self, event):
        await self.send_pointer(await Payload.objects.aget(pk=event["payload"]))
