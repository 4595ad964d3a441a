"""Columns that are read under other names, and those that are not read."""

ALIASES = {  # other names under which a column is found
    "messages": ("conversations", "conversation", "dialogue", "dialog", "contents"),
    "system": ("system_prompt", "system_message", "system_instruction", "systemInstruction"),
    "tools": ("functions",),
}
# Columns that would change what is trained on and are not read: an error if they say something.
REFUSED = (
    "weight", "weights", "sample_weight", "loss_weight", "loss_mask", "chat_template_kwargs", "thinking", "reasoning",
    "thoughts", "tool_calls", "function_call", "available_tools", "label", "kto_tag",
)  # fmt: skip
MEDIA = ("image", "images", "video", "videos", "audio", "audios")  # the same; their values are not looked at
