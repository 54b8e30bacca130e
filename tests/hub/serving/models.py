"""Tiny models and patches as their libraries save them, with a byte-level tokenizer."""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from adapterhub.hub.serving.protocol import Source, VariantSpec
from adapterhub.merging.folders import LocalFolder, MappedFolder

VOCABULARY = 258
"""256 bytes, a beginning and an end."""
BEGIN, END = 256, 257


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<begin>", "<end>"])
    made: Any = transformers.PreTrainedTokenizerFast
    wrapped: transformers.PreTrainedTokenizerFast = made(tokenizer_object=inner, bos_token="<begin>", eos_token="<end>")
    return wrapped


def llama(
    folder: Path,
    *,
    seed: int = 0,
    tied: bool = False,
    with_tokenizer: bool = True,
    width: int = 32,
    context: int = 256,
    template: str | None = None,
) -> Path:
    """A causal model of two layers. Its weights are large enough for answers to depend on them."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=BEGIN,
        eos_token_id=END,
        initializer_range=0.3,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    if with_tokenizer:
        made: Any = tokenizer()
        made.chat_template = template
        made.save_pretrained(folder)
    return folder


def scripted(
    folder: Path, text: str, *, at: int, template: str, response_template: object = None, special: Sequence[str] = ()
) -> Path:
    """A causal model that says `text` after a prompt of `at` tokens, whatever the prompt, when it is asked greedily.

    special: texts that are one special token each.

    It is a GPT-2 whose layers add nothing: the embedding of each position is the token to come.
    """
    made: Any = tokenizer()
    made.add_special_tokens({"additional_special_tokens": list(special)})
    config = transformers.GPT2Config(
        vocab_size=len(made),
        n_embd=len(made),
        n_layer=1,
        n_head=1,
        n_positions=at + 1000,
        tie_word_embeddings=False,
        bos_token_id=BEGIN,
        eos_token_id=END,
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.transformer.h.parameters():
            parameter.zero_()
        model.transformer.wte.weight.zero_()
        model.transformer.wpe.weight.zero_()
        model.lm_head.weight.copy_(torch.eye(len(made)))
        for step, token in enumerate([*made(text)["input_ids"], END], at - 1):
            model.transformer.wpe.weight[step, token] = 1
    model.save_pretrained(folder)
    made.chat_template = template
    if response_template is not None:
        made.response_template = response_template
    made.save_pretrained(folder)
    return folder


def gpt2(folder: Path) -> Path:
    """A causal model with Conv1D layers and tied embeddings, its names without the prefix that the library uses."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=BEGIN, eos_token_id=END
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def opt(folder: Path) -> Path:
    """A causal model that lays its rows one after the other before the linear layers of its feed-forward part."""
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=0,
        init_std=0.3,
    )
    transformers.OPTForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def bert_classifier(folder: Path) -> Path:
    """A classifier of texts into three classes."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        id2label={0: "no", 1: "maybe", 2: "yes"},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def word_tokenizer(context: int = 64) -> transformers.PreTrainedTokenizerFast:
    """Words as BERT cuts them: a few that are known, else their letters, and a mask."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(one) for one in range(ord("a"), ord("z") + 1)]
    known = ["sarah", "lives", "in", "paris", "new", "york", "and", "##ville", ".", ","]
    vocabulary = {
        word: number for number, word in enumerate([*special, *known, *letters, *(f"##{a}" for a in letters)])
    }
    inner = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    ends = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    made: Any = transformers.PreTrainedTokenizerFast
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    wrapped: transformers.PreTrainedTokenizerFast = made(tokenizer_object=inner, model_max_length=context, **names)
    return wrapped


def bert_of_words(head: Any, folder: Path, *, context: int = 64, seed: int = 0, **more: Any) -> Path:
    """A BERT with a head, which reads words; its weights are large enough for answers to depend on them."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(context)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=context,
        initializer_range=0.3,
        **more,
    )
    head(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bert_tagger(folder: Path, *, context: int = 64, seed: int = 0) -> Path:
    """A tagger of people and places."""
    head = transformers.BertForTokenClassification
    return bert_of_words(head, folder, context=context, seed=seed, id2label=dict(enumerate(TAGS)))


def bert_filler(folder: Path) -> Path:
    """A model that fills masks."""
    return bert_of_words(transformers.BertForMaskedLM, folder)


def vits(folder: Path, *, speakers: int = 1) -> Path:
    """A voice that speaks letters."""
    torch.manual_seed(0)
    letters = ["_", " ", *(chr(one) for one in range(ord("a"), ord("z") + 1))]
    config = transformers.VitsConfig(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
        flow_size=16,
        spectrogram_bins=9,
        num_speakers=speakers,
        speaker_embedding_size=8 if speakers > 1 else 0,
        upsample_initial_channel=16,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=2,
        posterior_encoder_num_wavenet_layers=1,
        duration_predictor_filter_channels=16,
        duration_predictor_num_flows=2,
        initializer_range=0.2,
    )
    transformers.VitsModel(config).save_pretrained(folder)
    vocabulary = folder / "letters.json"
    vocabulary.write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    made: Any = transformers.VitsTokenizer
    made(vocabulary, phonemize=False, pad_token="_", unk_token="_").save_pretrained(folder)
    vocabulary.unlink()
    return folder


def vit_classifier(folder: Path) -> Path:
    """A classifier of 8×8 images of one channel into ten classes."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=8,
        patch_size=2,
        num_channels=1,
        id2label={digit: str(digit) for digit in range(10)},
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]).save_pretrained(
        folder
    )
    return folder


def chat_template(name: str) -> str:
    """The chat template of a real model, as trl carries it."""
    found = importlib.util.find_spec("trl")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).with_name("chat_templates").joinpath(f"{name}.jinja").read_text()


def lora(base: Path, folder: Path, *, seed: int, targets: Sequence[str] = ("q_proj", "v_proj"), r: int = 2) -> Path:
    """A LoRA that changes the base's answers; B is random, as after training."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(
        r=r,
        lora_alpha=8,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    tuned = peft.get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    tuned.save_pretrained(str(folder))
    return folder


def source(reference: str, folder: Path, kind: str = "model") -> Source:
    """The files of a local folder, as an input of a recipe."""
    local = LocalFolder(folder)
    files = {name: (folder / name, local.digest(name), local.size(name)) for name in local.names()}
    return Source(reference, f"{reference}@{'0' * 40}", kind, MappedFolder(files))


def spec(expression: str, base: Source, *patches: Source) -> VariantSpec:
    """A recipe on a base, under a digest of the expression and of its files."""
    sources = (base, *patches)
    files = [one.folder.digest(name) for one in sources for name in one.folder.names()]
    digest = hashlib.sha256("\n".join([expression, *files]).encode()).hexdigest()
    return VariantSpec(f"sha256:{digest}", expression, sources)
