"""The page: a Gradio front for the engine. It receives functions, never a model."""
