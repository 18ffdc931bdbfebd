"""One encoder, several heads, and what is kept of it."""

import torch
from torch import nn

from shared.networks.encoders import create_encoder
from shared.networks.heads import ContrastiveModel, ProjectionHead
from shared.pretext.network import (
    PretextModel,
    as_tuple,
    freeze_unseen,
    kept_part,
)


class MapHead(nn.Module):
    sees = "map"

    def forward(self, features):
        return features.mean((2, 3))


def test_each_input_gets_the_answer_of_its_head():
    encoder = create_encoder("simclr_resnet8_1x_sk0", 8)
    model = ContrastiveModel(encoder, ProjectionHead(64, 2, 5))
    assert model.features == 64
    linear = nn.Linear(64, 4)
    several = PretextModel(model, [linear, None, MapHead()]).eval()
    images, larger = torch.rand(3, 3, 8, 8), torch.rand(2, 3, 12, 12)
    answers = several(images, larger, images)
    features = encoder(images)
    assert torch.allclose(answers[0], linear(features))
    assert torch.allclose(answers[1], model(larger))
    assert torch.allclose(answers[2], features, atol=1e-6)


def test_the_artifact_has_the_encoder_and_the_projection_head_alone():
    model = ContrastiveModel(create_encoder("simclr_resnet8_1x_sk0", 8), ProjectionHead(64, 0))
    trained = PretextModel(model, [nn.Linear(64, 4)])
    assert kept_part(model) is model
    assert kept_part(trained).state_dict().keys() == model.state_dict().keys()
    assert len(trained.state_dict()) == len(model.state_dict()) + 2


def test_as_tuple():
    assert as_tuple(torch.ones(1)) == (torch.ones(1),)
    assert len(as_tuple((torch.ones(1), torch.ones(1)))) == 2


def test_weights_that_no_head_sees_are_frozen():
    """Else several processes would wait for their gradient, and a checkpoint would lack it."""
    encoder = create_encoder("test_convnext", 32)
    model = ContrastiveModel(encoder, ProjectionHead(encoder.head_hidden_size, 0))
    pooled = nn.Linear(encoder.head_hidden_size, 4)
    for heads, frozen in (([MapHead(), pooled], 0), ([MapHead()], 2)):
        trained = PretextModel(model, heads)
        freeze_unseen(trained, 32)
        sum(answer.sum() for answer in trained(*[torch.rand(2, 3, 32, 32)] * len(heads))).backward()
        without = [weight for weight in trained.parameters() if weight.grad is None]
        assert [weight.requires_grad for weight in without] == [False] * frozen
        trained.zero_grad()
